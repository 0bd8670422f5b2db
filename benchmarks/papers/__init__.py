"""The papers' orderings, reproduced in virtual time."""
