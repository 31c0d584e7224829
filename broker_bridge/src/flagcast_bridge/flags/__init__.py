"""Flags files: read, checked and compiled."""
