"""Exceptions of policies: counted, never raised, for the driver to report."""


class Faults:
    """How many, and the last one."""

    def __init__(self) -> None:
        self.count = 0
        self.last: Exception | None = None

    def add(self, fault: Exception) -> None:
        self.count += 1
        self.last = fault
