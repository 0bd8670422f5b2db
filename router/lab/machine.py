"""What lies around the engines: the cores they share, and the way between them and the router.

Both decide how a fleet is best used, and neither is a property of one engine. On a fleet whose workers share cores
every busy engine slows the others, so that few full engines bring more answers than many that are half full. And
the longer the way, the more has to be in flight for the next step to have prompts (`benchmarks/LOG.md`).
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Machine:
    """The defaults are engines with hardware of their own, at no distance. Raises ValueError."""

    cores: float | None = None
    """Engines that can compute at full speed at the same time. While more of them are busy, every step takes
    longer in proportion. Not whole where other processes take a share of them. None: all of them."""
    request_s: float = 0.0
    """From a dispatch until the engine has the request: HTTP, chat template, tokenizer."""
    reply_s: float = 0.0
    """From the end of a step until the router, and through it the client, has what it brought."""

    def __post_init__(self) -> None:
        if self.cores is not None and not 0.0 < self.cores < math.inf:
            raise ValueError(f"{self.cores} cores: more than none")
        if not (0.0 <= self.request_s < 3600.0 and 0.0 <= self.reply_s < 3600.0):
            raise ValueError(f"ways of {self.request_s} and {self.reply_s} s: from 0 to an hour")

    def pace(self, busy: int) -> float:
        """How many times as long each step takes while this many engines are busy."""
        return 1.0 if self.cores is None else max(1.0, busy / self.cores)
