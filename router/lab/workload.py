"""What the lab replays: requests with their moments, lengths, clients, and the identity of their prompts.

A prompt's identity is a sequence of *units*, 8-byte numbers that each stand for `block_tokens` tokens. Equal
units at equal places behind equal units mean equal KV blocks; a unit covers a full block only, so the tokens
behind the last full block have none. The same units feed both sides:

- the router: `PrefixKey(request.key, UNIT_BYTES, workload.block_tokens)`;
- the simulated engine: `Blocks(request.block_names, request.input_tokens)`, with `workload.block_tokens` as its
  block size.
"""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

UNIT_BYTES = 8
"""Width of a unit in a key; units are unsigned, in the machine's byte order."""


class WorkloadError(ValueError):
    """A workload that cannot be had; the message is for whoever named it."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request of a workload."""

    at: float
    """When it arrives, in seconds from the start; with `after`, the earliest it could."""
    client: str
    key: bytes
    """Units of the prompt's full blocks, joined."""
    input_tokens: int
    output_tokens: int
    """At least 1."""
    reply_key: bytes = b""
    """Units of the blocks that the answer fills, where a later prompt repeats them; else empty."""
    session: str | None = None
    priority: int = 0
    """Lower is earlier."""
    weight: float = 1.0
    """Its client's."""
    after: tuple[int, float] | None = None
    """(n, delay): it arrives `delay` seconds after request number n of the workload has ended, not at `at`."""

    @property
    def block_names(self) -> list[int]:
        """Units of the prompt's full blocks and of those that the answer fills, as numbers."""
        return array("Q", self.key + self.reply_key).tolist()


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests in the order of `at`; an `after` always names an earlier one.

    `requests` makes a `Request` each time it is asked for one: iterate, and keep no more than is needed.
    """

    name: str
    block_tokens: int
    requests: Sequence[Request]
    weights: Mapping[str, float] = field(default_factory=dict)
    """Of every client; all clients are in it."""
    misbehaving: frozenset[str] = frozenset()
    warnings: tuple[str, ...] = ()
    """What its reader had to put right, for the eyes of whoever replays it."""

    @property
    def clients(self) -> tuple[str, ...]:
        return tuple(self.weights)
