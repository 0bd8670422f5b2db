"""Policies of our own for fairlead; pyproject.toml says under which names it finds them."""
