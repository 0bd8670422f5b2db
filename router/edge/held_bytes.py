"""How many bytes the gateway holds for its requests: bodies that may still be sent, answers that are not read yet.

One request is bounded by the limits of its body and of an answer; this bounds all of them together. What would go
beyond is refused as it arrives, so that a queue of large bodies, or clients that do not read, cannot take the
machine's memory. What waits in the connection of a slow client is part of it: such a client has a share, as long
as answers take less than a quarter of all, and without one its worker waits for it.

Invariant: `requests` and `answers` are the sums over all `Holding`s, and the shares of slow clients. Each holding
is emptied at its request's one end, each share given back when its connection is read or lost.
"""

from router.edge.errors import Overloaded

_SHARE_BYTES = 4 << 20
"""The most that one connection takes."""
_ANSWERS_PART = 4
"""While answers take this part of the limit, or more, nothing is left for another slow client's share."""


class HeldBytes:
    """The sums of all requests. `limit` may change at any time; what is held stays held."""

    __slots__ = ("answers", "limit", "most", "requests")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.requests = 0
        self.answers = 0
        self.most = 0
        """The most that was held at once since `fallen` was asked and had fallen."""

    @property
    def total(self) -> int:
        return self.requests + self.answers

    def fallen(self, size: int) -> bool:
        """Whether `size` bytes fewer are held than at some time since this was last so."""
        if self.most - self.total < size:
            return False
        self.most = self.total
        return True

    def take_share(self) -> int:
        """What one more slow client may leave unread in its connection, in bytes; 0 once nothing is left."""
        room = min(self.limit // _ANSWERS_PART - self.answers, self.limit - self.requests - self.answers)
        share = max(0, min(_SHARE_BYTES, room))
        self.answers += share
        self.most = max(self.most, self.total)
        return share

    def give_back(self, share: int) -> None:
        """The client has read it, or is gone."""
        self.answers -= share


class Holding:
    """What one request holds."""

    __slots__ = ("_all", "_answer", "_request")

    def __init__(self, everything: HeldBytes) -> None:
        self._all = everything
        self._request = 0
        self._answer = 0

    def add_request(self, size: int) -> None:
        """`size` more bytes of its body, or made of it, are held. Raises Overloaded."""
        self._check(size)
        self._request += size
        self._all.requests += size

    def add_answer(self, size: int) -> None:
        """`size` more bytes of its answer are held. Raises Overloaded."""
        self._check(size)
        self._answer += size
        self._all.answers += size

    def drop_request(self, size: int | None = None) -> None:
        """`size` bytes of its body are released; None: all."""
        size = self._request if size is None else min(size, self._request)
        self._request -= size
        self._all.requests -= size

    def drop_answer(self, size: int | None = None) -> None:
        """`size` bytes of its answer have been sent; None: all."""
        size = self._answer if size is None else min(size, self._answer)
        self._answer -= size
        self._all.answers -= size

    def _check(self, size: int) -> None:
        everything = self._all
        total = everything.requests + everything.answers + size
        if total > everything.limit:
            raise Overloaded(
                f"The gateway holds {everything.requests} bytes of requests and {everything.answers} of answers; "
                f"its limit is {everything.limit} (`limits.held_bytes`).",
                retry_after_s=5,
            )
        everything.most = max(everything.most, total)
