"""Runs and their results: what the project claims of speed and fairness, each by a command."""
