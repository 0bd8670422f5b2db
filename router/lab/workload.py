"""What the lab replays: requests with their arrival times, lengths, clients, and the identity of their prompts.

A prompt's identity is a sequence of *units*, 8-byte numbers that each stand for `block_tokens` tokens. Equal
units at equal places behind equal units mean equal KV blocks; a unit covers a full block only, so the tokens
behind the last full block have none. The same units feed both sides:

- the router, as one that tokenizes prompts: `PrefixKey(request.key, UNIT_BYTES, workload.block_tokens)`;
- the simulated engine: `Blocks(request.block_names, request.input_tokens)`, with `workload.block_tokens` as its
  block size.

A router without a tokenizer sees text instead, which `text_keys` makes of `Request.segments`.
"""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from xxhash import xxh3_64_intdigest

UNIT_BYTES = 8
"""Width of a unit in a key; units are unsigned, in the machine's byte order."""


BASE_NAME = "model"
"""The served name of the base model."""


class WorkloadError(ValueError):
    """A workload that cannot be opened; the message is for the person who named it."""


@dataclass(frozen=True, slots=True)
class Targets:
    """A service level: the first token within `ttft_s` seconds, each further one within `tpot_s` on average.

    An answer that is not streamed has to end within the time of both together.
    """

    ttft_s: float = 2.0
    tpot_s: float = 0.1

    @property
    def name(self) -> str:
        return f"TTFT {self.ttft_s:g} s, TPOT {self.tpot_s:g} s"


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
    """Of each answer, at least 1."""
    reply_key: bytes = b""
    """Units of the blocks that the (first) answer fills, where a later prompt repeats them; else empty."""
    session: str | None = None
    priority: int = 0
    """Lower is earlier."""
    weight: float = 1.0
    """Its client's."""
    after: tuple[int, float] | None = None
    """(n, delay): it arrives `delay` seconds after request number n of the workload has ended, not at `at`."""
    segments: tuple[tuple[int, int], ...] = ()
    """The prompt's text as (name, tokens) pieces from its beginning; equal names stand for equal text. Empty where
    only its blocks are known: then each unit is a piece."""
    streams: bool = True
    """Its answer is streamed; a whole one arrives with its last token."""
    sequences: int = 1
    """Answers wanted (`n`), all of the same length."""
    served_name: str = BASE_NAME
    """The model that it asks for: the base model, or a LoRA adapter of it."""
    targets: Targets | None = None
    """Its service level; None: that of the whole replay."""

    @property
    def block_names(self) -> list[int]:
        """Names of the prompt's full blocks and of those that the answer fills; different for each served name."""
        units = array("Q", self.key + self.reply_key).tolist()
        if self.served_name == BASE_NAME:
            return units
        mark = xxh3_64_intdigest(self.served_name.encode())
        return [unit ^ mark for unit in units]


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
    """What its reader had to put right or leave out, to be shown before a replay."""
    served_names: tuple[str, ...] = (BASE_NAME,)
    """Every name that its requests ask for. Caches are separate by name: no KV is shared between two."""

    @property
    def clients(self) -> tuple[str, ...]:
        return tuple(self.weights)
