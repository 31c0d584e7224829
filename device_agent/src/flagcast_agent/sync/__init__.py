"""Synchronisation with the broker: pure state machines, without I/O and clocks."""
