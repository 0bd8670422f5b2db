"""The control plane: everything that requests share. Fleet, schedulers, parties, quotas, owners."""
