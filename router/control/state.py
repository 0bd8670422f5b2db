"""What every request needs: the parts of the gateway that outlive it, and the count of what is open."""

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from router.config.sections import Limits
from router.control.pair_compatibility import PairCompatibility
from router.control.parties.identity import Clients
from router.control.pools import Pools
from router.control.response_owners import ResponseOwners
from router.control.token_ratio import TokenRatio
from router.edge.errors import Overloaded, Unavailable
from router.edge.execution.kv_release import KvReleases
from router.observability.metrics import Metrics
from router.observability.request_log import RequestLog
from router.tokenization.tokenization import Tokenization
from workers.fleet.fleet import Fleet

_DECISIONS = 1000


@dataclass(slots=True)
class Gateway:
    """One gateway; put together in `app`."""

    pools: Pools
    fleet: Fleet
    clients: Clients
    holders: ResponseOwners
    scale: TokenRatio
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
    releases: KvReleases = field(init=False)
    handovers: PairCompatibility = field(default_factory=PairCompatibility)

    def __post_init__(self) -> None:
        self.releases = KvReleases(self.pools)

    def check_room(self) -> None:
        """Raises if the gateway takes no more requests."""
        if self.draining:
            raise Unavailable("The gateway is shutting down.", retry_after_s=1)
        if self.open > self.limits.concurrent_requests:
            limit = self.limits.concurrent_requests
            raise Overloaded(f"{limit} requests are open, which is the gateway's limit.", retry_after_s=1)
