"""The gateway: joins policies, which decide, with workers, which act."""
