"""The workers of a pool: what each has in flight, what fits there, how fast it is."""
