"""Attacks on Flagcast's walls. Each is a function of a `bench.Bench` that carries one out and yields its figures.

`abuse.py` runs them. Victims are in `bench`, attackers and bystanders in `load`, hostile bytes in `messages`.
"""
