"""Whose request is next: one file per queue order."""
