"""The process that looks after what was published."""
