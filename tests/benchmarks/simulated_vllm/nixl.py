"""Stands in for NIXL, which is only looked for."""
