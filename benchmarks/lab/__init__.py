"""The shipped policies against all others, in virtual time."""
