"""Costs of single parts, measured alone."""
