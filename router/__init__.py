"""The gateway: joins policies, which decide, with workers, which act."""

__version__ = "0.2.0"
"""Of the distribution fairlead-router; pyproject.toml reads it from here."""
