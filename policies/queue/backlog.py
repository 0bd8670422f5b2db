"""A queue by client: each client's requests in order of arrival, and which clients have any."""

from collections import OrderedDict
from collections.abc import Iterator
from itertools import islice

from policies.model import RequestView


class Backlog:
    """First in, first out within each client; a request that comes back stands where it stood."""

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
        if again:  # back to where it stood
            for younger in [other.id for other in line.values() if other.arrived > request.arrived]:
                line.move_to_end(younger)
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
