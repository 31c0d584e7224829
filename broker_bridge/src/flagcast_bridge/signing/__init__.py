"""Keys, signatures and ceremonies."""
