"""What every request needs: the parts of the gateway that outlive it, and the count of what is open."""

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from router.clients import Clients
from router.errors import Overloaded, Unavailable
from router.handovers import Handovers
from router.holders import Holders
from router.log import RequestLog
from router.metrics import Metrics
from router.pools import Pools
from router.releases import Releases
from router.sections import Limits
from router.tokenization.tokenization import Tokenization
from router.tokens import TokenScale
from workers.fleet.fleet import Fleet

_DECISIONS = 1000


@dataclass(slots=True)
class Gateway:
    """One gateway; put together in `app`."""

    pools: Pools
    fleet: Fleet
    clients: Clients
    holders: Holders
    scale: TokenScale
    tokenization: Tokenization
    metrics: Metrics
    request_log: RequestLog
    limits: Limits
    loop: asyncio.AbstractEventLoop
    decision_headers: bool = False
    """Answers say which worker gave them, and why it."""
    decisions: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=_DECISIONS))
    """The log lines of the last requests that were placed."""
    open: int = 0
    """Requests inside, the one that asks included."""
    draining: bool = False
    releases: Releases = field(init=False)
    handovers: Handovers = field(default_factory=Handovers)

    def __post_init__(self) -> None:
        self.releases = Releases(self.pools)

    def check_room(self) -> None:
        """Raises if the gateway takes no more requests."""
        if self.draining:
            raise Unavailable("The gateway is shutting down.", retry_after_s=1)
        if self.open > self.limits.concurrent_requests:
            limit = self.limits.concurrent_requests
            raise Overloaded(f"{limit} requests are open, which is the gateway's limit.", retry_after_s=1)
