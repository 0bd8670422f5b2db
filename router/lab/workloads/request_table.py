"""The requests of a workload in columns, some 70 bytes each, made into `Request`s when asked for."""

from array import array
from collections.abc import Iterator, Sequence
from typing import TypeVar, overload

from router.lab.workload import BASE_NAME, Request, Targets
from router.lab.workloads.prompts import Prompts

NO_ROW = -1
_COLUMNS = (
    *("_client", "_prompt", "_reply", "_output", "_session", "_priority", "_delay"),
    *("_streams", "_sequences", "_name", "_targets"),
)
"""Those that a row carries with it as it is."""
Named = TypeVar("Named")


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
        self._streams = array("b")
        self._sequences = array("i")
        self._name = array("i")
        self._targets = array("i")
        self._names: list[str] = []
        self._name_of: dict[str, int] = {}
        self._classes: list[Targets | None] = []
        self._class_of: dict[Targets | None, int] = {}

    def client(self, name: str, weight: float = 1.0) -> int:
        """Number of the client of this name; its weight counts when it is new."""
        self.weights.setdefault(name, weight)
        return _number(name, self._clients, self._client_of)

    def session(self, name: str) -> int:
        """Number of the session of this name."""
        return _number(name, self._sessions, self._session_of)

    @property
    def served_names(self) -> tuple[str, ...]:
        """Every model that a row asks for, in the order in which they were first named."""
        used = set(self._name)
        return tuple(name for number, name in enumerate(self._names) if number in used)

    def answered_in(self, row: int, prompt: int) -> None:
        """The prompt goes on where that of the row ended, and repeats its answer. The first to say so counts."""
        if self._reply[row] == NO_ROW:
            self._reply[row] = prompt

    def change(
        self, row: int, *, streams: bool, sequences: int, served_name: str, targets: Targets | None, priority: int
    ) -> None:
        """Give a row another form of answer, model, service level and priority."""
        self._streams[row] = streams
        self._sequences[row] = sequences
        self._name[row] = _number(served_name, self._names, self._name_of)
        self._targets[row] = _number(targets, self._classes, self._class_of)
        self._priority[row] = priority

    def client_of(self, row: int) -> int:
        """Number of the row's client."""
        return self._client[row]

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
        streams: bool = True,
        sequences: int = 1,
        served_name: str = BASE_NAME,
        targets: Targets | None = None,
    ) -> int:
        """Append a row, return its number; `prompt` and `reply` are nodes of `prompts`, `after` an earlier row."""
        self._streams.append(streams)
        self._sequences.append(sequences)
        self._name.append(_number(served_name, self._names, self._name_of))
        self._targets.append(_number(targets, self._classes, self._class_of))
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
        for name in _COLUMNS:
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
            reply_key=b"" if reply == NO_ROW else self.prompts.key_behind(reply, prompt, self._output[row]),
            session=None if session == NO_ROW else self._sessions[session],
            priority=self._priority[row],
            weight=self.weights[client],
            after=None if after == NO_ROW else (after, self._delay[row]),
            segments=self.prompts.segments(prompt),
            streams=bool(self._streams[row]),
            sequences=self._sequences[row],
            served_name=self._names[self._name[row]],
            targets=self._classes[self._targets[row]],
        )


def _number(value: Named, values: list[Named], number_of: dict[Named, int]) -> int:
    """The value's place in the list, to which it is appended where it is new."""
    number = number_of.get(value)
    if number is None:
        number = number_of[value] = len(values)
        values.append(value)
    return number
