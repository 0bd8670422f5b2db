"""How much the edge takes in at once, and whether it still takes anything."""

from router.config.sections import Limits
from router.edge.api.body_reader import BodyReader
from router.edge.errors import Overloaded, Unavailable
from router.edge.held_bytes import HeldBytes


class Intake:
    """The count of requests inside, and its bounds. `draining`: open requests may finish, no new ones come in."""

    __slots__ = ("bodies", "draining", "held", "limits", "open")

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.open = 0
        self.held = HeldBytes(limits.held_bytes)
        self.bodies = BodyReader()
        """Parses what comes in."""
        self.draining = False

    def check_room(self) -> None:
        """Raises Unavailable or Overloaded if a request that `open` counts already is one too many."""
        if self.draining:
            raise Unavailable("The gateway is shutting down.", retry_after_s=1)
        if self.open > self.limits.concurrent_requests:
            limit = self.limits.concurrent_requests
            raise Overloaded(f"{limit} requests are open, which is the gateway's limit.", retry_after_s=1)
