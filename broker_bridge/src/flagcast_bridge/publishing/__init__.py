"""Publications, rotations and what keeps them up."""
