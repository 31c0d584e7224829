"""What publisher and device agent share: the model, the wire and the trust of Flagcast.

Nothing in this distribution does I/O, reads a clock, draws a random number or logs. Time and bytes are
arguments; what it has to say it returns or raises.
"""
