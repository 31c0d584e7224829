"""Plans of what to publish; pure."""
