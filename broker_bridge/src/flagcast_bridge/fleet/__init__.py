"""Devices: what they report and count."""
