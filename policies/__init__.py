"""What should happen: synchronous, deterministic, no I/O. Time and chance are arguments."""
