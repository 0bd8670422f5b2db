"""Which request is next: one file per order; what they share is in `kit/`."""
