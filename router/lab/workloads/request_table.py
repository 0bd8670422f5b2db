"""The requests of a workload in columns, some 60 bytes each, made into `Request`s when asked for."""

from array import array
from collections.abc import Iterator, Sequence
from typing import overload

from router.lab.workload import Request
from router.lab.workloads.prompts import Prompts

NO_ROW = -1


class RequestTable(Sequence[Request]):
    """Written row by row, then sorted, then only read."""

    def __init__(self, block_tokens: int) -> None:
        self.prompts = Prompts(block_tokens)
        self.weights: dict[str, float] = {}
        """Of each client, in the order in which they were named."""
        self._clients: list[str] = []
        self._client_of: dict[str, int] = {}
        self._sessions: list[str] = []
        self._session_of: dict[str, int] = {}
        self._at = array("d")
        self._client = array("i")
        self._prompt = array("q")
        self._reply = array("q")
        self._output = array("i")
        self._session = array("i")
        self._priority = array("i")
        self._after = array("q")
        self._delay = array("d")

    def client(self, name: str, weight: float = 1.0) -> int:
        """Number of the client of this name; its weight counts when it is new."""
        number = self._client_of.get(name)
        if number is None:
            number = self._client_of[name] = len(self._clients)
            self._clients.append(name)
            self.weights[name] = weight
        return number

    def session(self, name: str) -> int:
        """Number of the session of this name."""
        number = self._session_of.get(name)
        if number is None:
            number = self._session_of[name] = len(self._sessions)
            self._sessions.append(name)
        return number

    def add(
        self,
        at: float,
        client: int,
        prompt: int,
        output_tokens: int,
        *,
        reply: int = NO_ROW,
        session: int = NO_ROW,
        priority: int = 0,
        after: int = NO_ROW,
        delay: float = 0.0,
    ) -> int:
        """Append a row, return its number; `prompt` and `reply` are nodes of `prompts`, `after` an earlier row."""
        self._at.append(at)
        self._client.append(client)
        self._prompt.append(prompt)
        self._reply.append(reply)
        self._output.append(max(1, output_tokens))
        self._session.append(session)
        self._priority.append(priority)
        self._after.append(after)
        self._delay.append(delay)
        return len(self._at) - 1

    def arrived_by(self, moment: float) -> int:
        """How many rows are no later."""
        return sum(at <= moment for at in self._at)

    def sort(self, limit: int | None = None) -> None:
        """By arrival, equal ones as they were added; keep the first `limit`."""
        order = sorted(range(len(self._at)), key=self._at.__getitem__)
        place = array("q", bytes(8 * len(order)))
        for new, old in enumerate(order):
            place[old] = new
        order = order[:limit]
        after = self._after
        self._after = array("q", (place[after[row]] if after[row] != NO_ROW else NO_ROW for row in order))
        self._at = array("d", (self._at[row] for row in order))
        for name in ("_client", "_prompt", "_reply", "_output", "_session", "_priority", "_delay"):
            column = getattr(self, name)
            setattr(self, name, array(column.typecode, map(column.__getitem__, order)))

    def start_at_zero(self) -> None:
        """Let time begin with the first row."""
        if self._at:
            start = self._at[0]
            self._at = array("d", (at - start for at in self._at))

    def __len__(self) -> int:
        return len(self._at)

    @overload
    def __getitem__(self, row: int) -> Request: ...
    @overload
    def __getitem__(self, row: slice) -> list[Request]: ...
    def __getitem__(self, row: int | slice) -> Request | list[Request]:
        if isinstance(row, slice):
            return [self._request(each) for each in range(*row.indices(len(self)))]
        if not -len(self) <= row < len(self):
            raise IndexError(row)
        return self._request(row % len(self))

    def __iter__(self) -> Iterator[Request]:
        return map(self._request, range(len(self)))

    def _request(self, row: int) -> Request:
        client = self._clients[self._client[row]]
        prompt, reply = self._prompt[row], self._reply[row]
        session, after = self._session[row], self._after[row]
        return Request(
            at=self._at[row],
            client=client,
            key=self.prompts.key(prompt),
            input_tokens=self.prompts.tokens(prompt),
            output_tokens=self._output[row],
            reply_key=b"" if reply == NO_ROW else self.prompts.own_key(reply),
            session=None if session == NO_ROW else self._sessions[session],
            priority=self._priority[row],
            weight=self.weights[client],
            after=None if after == NO_ROW else (after, self._delay[row]),
        )
