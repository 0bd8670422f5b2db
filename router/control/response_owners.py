"""Which worker keeps which stored response: `previous_response_id`, and GET and cancel by id, must find it."""

from policies.model import WorkerId
from workers.bounds.bounded_map import BoundedMap

_MAX_HELD = 100_000


class ResponseOwners:
    """Response id to worker, the last `_MAX_HELD` of them."""

    def __init__(self) -> None:
        self._by_response: BoundedMap[str, WorkerId] = BoundedMap(_MAX_HELD)

    def __len__(self) -> int:
        return len(self._by_response)

    def keep(self, response: str, worker: WorkerId) -> None:
        self._by_response[response] = worker

    def find(self, response: str | None) -> WorkerId | None:
        """The worker that answered it; None for an id that was never seen here, or long ago."""
        return None if response is None else self._by_response.get(response)
