"""Which worker is best for a request: one file per rule; what they share is in `kit/`."""
