"""How many sequences does an engine run at once, where neither the operator nor the launch has said so?

No bound until two readings in a row show requests waiting inside the engine: then what was running is the bound
(one reading may catch requests on their way in). Whenever the bound was reached and nothing waited, it is probed
upwards by a quarter.
"""


class LearnedSlots:
    """The bound of one worker, None while unknown."""

    def __init__(self) -> None:
        self.bound: int | None = None
        self.peak = 0
        """Most sequences in flight at once since the last reading."""
        self._waited = 0

    def read(self, running: int, waiting: int, sequences: int) -> None:
        """A reading of the worker's metrics, and how many sequences are in flight there now."""
        if waiting > 0:
            if self._waited:
                self.bound = max(running, self._waited)
            self._waited = max(1, running)
        else:
            if self.bound is not None and self.peak >= self.bound:
                self.bound += max(1, self.bound // 4)
            self._waited = 0
        self.peak = sequences
