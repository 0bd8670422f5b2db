"""A queue by client: each client's requests in order of arrival, and which clients have any."""

from collections import OrderedDict
from collections.abc import Iterator
from itertools import islice

from policies.model import RequestView


class Backlog:
    """First in, first out within each client; a request that comes back goes to the head of its client's line."""

    def __init__(self) -> None:
        self.lines: dict[str, OrderedDict[str, RequestView]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[RequestView]:
        return (request for line in self.lines.values() for request in line.values())

    def push(self, request: RequestView, *, again: bool) -> None:
        line = self.lines.setdefault(request.client, OrderedDict())
        line[request.id] = request
        if again:
            line.move_to_end(request.id, last=False)
        self._count += 1

    def remove(self, request: RequestView) -> None:
        line = self.lines[request.client]
        del line[request.id]
        self._count -= 1
        if not line:
            del self.lines[request.client]

    def heads(self, client: str, depth: int) -> Iterator[RequestView]:
        """The first few requests of a client."""
        return islice(self.lines[client].values(), depth)

    def head(self, client: str) -> RequestView:
        return next(iter(self.lines[client].values()))
