"""Bounds on what repeats and what grows: pauses between attempts, lines in the log, entries in a map."""
