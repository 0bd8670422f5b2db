"""The vocabulary of a decision: what a policy is told, what it answers, what it hears afterwards.

Everything here is a value. Tokens are counts, times are seconds on the driver's clock (the gateway's monotonic
clock or the lab's virtual one). A *worker* is named by an opaque string; a *client* by a path such as
`organisation/team/user`; a *served name* is a model name that a request may ask for: the base model, an alias,
or a LoRA adapter of the pool's base model.
"""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from policies.estimates.answer_length import Length
from policies.fleet.capacity import Room
from policies.fleet.obstacle import Obstacle
from policies.fleet.speed import Profile
from policies.value import value

WorkerId = str


class Stage(Enum):
    """What a worker may be used for. A colocated worker does both."""

    PREFILL = "prefill"
    DECODE = "decode"


class Outcome(Enum):
    """How a request ended; every request ends in exactly one of these."""

    COMPLETED = "completed"
    CANCELLED = "cancelled"
    """The client left."""
    REFUSED = "refused"
    """A worker answered 4xx: the request was wrong."""
    REJECTED = "rejected"
    """The scheduler turned it away; no worker answered it."""
    FAILED = "failed"
    """A worker broke off after the client had already received part of the answer."""


class RejectReason(Enum):
    QUEUE_FULL = "queue_full"
    WAITED_TOO_LONG = "waited_too_long"
    NO_WORKER = "no_worker"
    TOO_LARGE = "too_large"
    """No worker can ever hold it."""
    ATTEMPTS_FAILED = "attempts_failed"
    """Every worker it was given to failed, or the attempts are used up."""


class AttemptFailure(Enum):
    """Why an attempt on a worker ended without an answer."""

    CONNECT = "connect"
    TIMEOUT = "timeout"
    LOST = "lost"
    """The connection broke, or the worker talked nonsense."""
    FROZEN = "frozen"
    """The worker answers nothing any more, neither this request nor its health checks."""
    BUSY = "busy"
    """The worker answered that it has no room (429, 503): it is well."""
    NOT_HERE = "not_here"
    """The worker does not store what the request is about; another one may."""
    CLIENTS_FAULT = "clients_fault"
    """The request itself is wrong, and would fail on any worker."""
    ERROR = "error"
    """The worker answered 5xx, or an error inside a stream."""
    SHUTDOWN = "shutdown"
    """The worker ended it because it is going away."""
    HANDOVER = "handover"
    """Both workers of a pair serve, but the second cannot go on from what the first has computed."""


class Reason(Enum):
    """Why a placement chose the worker it chose: the label of `fairlead_decisions_total`."""

    HIT = "hit"
    MISS = "miss"
    SPILL = "spill"
    LOAD = "load"
    TURN = "turn"
    ONLY_CHOICE = "only_choice"
    CHANCE = "chance"
    WARM_UP = "warm_up"
    NAMED = "named"
    """Chosen on arrival (`binding: early`)."""


@value
class PrefixKey:
    """A prompt as a sequence of opaque units of `width` bytes, each standing for `tokens_per_unit` tokens.

    It covers everything that the model reads, in the order of its chat template, and whatever else separates
    caches (the served name, a cache salt): equal leading units mean equal KV blocks.
    """

    data: bytes = b""
    width: int = 1
    tokens_per_unit: float = 0.25
    salt: bytes = b""
    """What separates caches beside the served name and stands for no token; keys of text have it in their data."""


@dataclass(slots=True)
class RequestView:
    """One request as the scheduler and its policies see it. Not changed after `submit`."""

    id: str
    client: str
    served_name: str
    """The model name that was asked for: the base model, an alias of it, or a LoRA adapter."""
    key: PrefixKey
    input_tokens: int
    """Of the prompt. The worker's usage says what it really was."""
    expected_output_tokens: int
    """Mean estimate per sequence, at most `max_output_tokens`."""
    arrived: float
    exact: bool = False
    """`input_tokens` is the count of the model's own tokenizer, not an estimate."""
    length: Length | None = None
    """The whole estimate, an interval around that mean."""
    max_output_tokens: int | None = None
    sequences: int = 1
    """Answers wanted (`n`, lists of prompts); each takes a slot of the engine's batch."""
    streams: bool = False
    """The driver sees the first token; otherwise the scheduler has to predict it."""
    weight: float = 1.0
    """Share of service beside others of the first level of `party`."""
    party: tuple[str, ...] = ()
    """Whose request it is, from the top: organisation or key, team, user. Empty: the client alone."""
    weights: tuple[float, ...] = ()
    """Weight of each level of `party` among its siblings, 1 where missing. Empty: `weight` is the first."""
    priority: int = 0
    """Lower is earlier, as in vLLM."""
    deadline: float | None = None
    session: str | None = None
    parent: str | None = None
    media: tuple[str, ...] = ()
    pinned: WorkerId | None = None
    """Only this worker can serve it (it holds the conversation's state)."""
    bound: "Placement | None" = None
    """The workers that were named for it on arrival (`binding: early`)."""
    excluded: frozenset[WorkerId] = frozenset()
    """Workers on which an attempt has already failed."""
    whole: bool = False
    """One worker has to serve it from its prompt to its end."""
    resume_tokens: int = 0
    """Of its answer, from which it goes on after its worker has died: they are part of `input_tokens`."""
    chains: dict[tuple[int, str | None], "array[int]"] | None = field(default=None, compare=False, repr=False)
    """What is remembered of the key: digests of its blocks, see `held_blocks`."""

    @property
    def divisible(self) -> bool:
        """Whether a prefill and a decode worker may share it: the KV that is handed over can be fetched once."""
        return not self.whole and self.sequences == 1


class Ticket(NamedTuple):
    """One attempt of one request. Every event carries it, and events of an old attempt are dropped."""

    request: str
    attempt: int
    serial: int = 0
    """Different for all tickets of a scheduler, so that a request id used again later is told apart."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a worker's own metrics said last: a slow correction, never the only source of load."""

    at: float
    running: int
    waiting: int


@dataclass(frozen=True, slots=True)
class WorkerFacts:
    """What the driver knows of a worker. A change replaces the whole value."""

    id: WorkerId
    served_names: frozenset[str]
    """Model names that it answers to: the base model, its aliases and LoRA adapters."""
    stages: frozenset[Stage] = frozenset(Stage)
    usable: bool = True
    """May be given new requests (neither down nor draining)."""
    suspect: bool = False
    """Recent requests failed there: used when no better worker is left."""
    slots: int | None = None
    """Sequences the engine runs at once, where known."""
    adapters: frozenset[str] = frozenset()
    """Those of the served names that are LoRA adapters: their KV is of no use to the others."""
    kv_tokens: int | None = None
    block_size: int | None = None
    """Tokens per KV block, where its metrics say."""
    max_batched_tokens: int | None = None
    max_model_len: int | None = None
    """Tokens that a prompt and its answer may have together."""
    reading: Reading | None = None
    """None while stale or absent."""

    def serves(self, request: RequestView) -> bool:
        """Whether the request may run here at all, with room or without."""
        return self.usable and self.suits(request)

    def suits(self, request: RequestView) -> bool:
        """Whether the request might run here if the worker were up."""
        return (
            request.served_name in self.served_names
            and self.id not in request.excluded
            and (request.pinned is None or request.pinned == self.id)
        )


@value
class WorkerView:
    """A worker as a placement policy sees it: load as counted by the scheduler itself, exact and immediate."""

    id: WorkerId
    facts: WorkerFacts
    requests: int
    """Dispatched and not yet settled."""
    sequences: int
    prefill_owed: int
    """Extend tokens dispatched that are not known to be computed yet."""
    decode_tokens: int
    """Tokens of context of the sequences that are decoding."""
    kv_reserved: int
    """KV tokens of everything in flight: shared prefixes once, answers at their expected length."""
    room: Room
    profile: Profile
    load_s: float
    """Work in hand, seconds: the prefill owed, and one decode step of every sequence."""
    prefill_due: float
    """When the prefill in flight should be done, by the profile; the past if there is none."""
    stalled: bool = False
    """Nothing has come back for long although something is due: used when no better worker is left."""
    named_requests: int = 0
    """Waiting requests that are named to this worker: it is chosen for them, and they are not sent yet."""
    named_sequences: int = 0
    """Their sequences."""
    named_prefill_tokens: int = 0
    """Their prompt tokens that this worker would have to compute."""

    def admits(self, request: RequestView, matched_tokens: int) -> bool:
        """Whether the whole request could start here now; a worker with one role can do that, too."""
        room = self.room
        if not room.open or room.idle:  # asked for each worker and request: the short ways first
            return room.open
        prompt = request.input_tokens
        extend = max(1, prompt - matched_tokens)
        return room.admits(prompt, extend, request.expected_output_tokens, request.sequences)

    def obstacle(self, request: RequestView, matched_tokens: int) -> Obstacle | None:
        """What keeps the request, or the part of it that the worker's role allows, from starting here now."""
        prompt = request.input_tokens
        extend = max(1, prompt - matched_tokens)
        return self.room.obstacle(prompt, extend, request.expected_output_tokens, request.sequences)

    def room_expected_at(self, request: RequestView, matched_tokens: int) -> float:
        """When the whole request is expected to fit here, by what is missing: prefill, slots or KV.

        On the driver's clock, seconds; the past if nothing is missing. A prediction: it may be overdue.
        """
        prompt = request.input_tokens
        extend = max(1, prompt - matched_tokens)
        return self.room.expected_for(prompt, extend, request.expected_output_tokens, request.sequences)

    def admits_prefill(self, request: RequestView, matched_tokens: int) -> bool:
        """Whether its prompt could be computed here now, for another worker to answer."""
        prompt = request.input_tokens
        return self.room.admits_prefill(prompt, max(1, prompt - matched_tokens))

    def admits_decode(self, request: RequestView, matched_tokens: int) -> bool:
        """Whether it could be answered here if another worker began on its prompt now."""
        prompt = request.input_tokens
        fresh = max(1, prompt - matched_tokens)
        return self.room.admits_decode(prompt, fresh, request.expected_output_tokens, request.sequences)


def reserve(request: RequestView) -> int:
    """KV tokens that the request's answers are expected to occupy at their end."""
    return request.expected_output_tokens * request.sequences


class Placement(NamedTuple):
    """Where the stages of a request run. Without `prefill` the decode worker does both (colocated)."""

    decode: WorkerId
    prefill: WorkerId | None = None
    encode: WorkerId | None = None

    @property
    def ranked(self) -> WorkerId:
        """The worker that the placement policy chose: it computes the prompt."""
        return self.prefill or self.decode


Rated = tuple[WorkerId, float, int, Obstacle | None]
"""A worker as it was looked at for a request: its cost, the tokens of the prompt that it held, and why the request
did not start there although it was ranked better than the worker that was taken (None: it was not)."""


class Wait(NamedTuple):
    """A part of a request's time in the queue: from when on it waited for what, until the next one begins."""

    since: float
    obstacle: Obstacle
    worker: WorkerId | None = None
    """The one that a hold waits for."""


@value
class Place:
    """Where the matcher starts a request, and why. It commits nothing: the `Placed` event does."""

    placement: Placement
    reason: Reason
    matched_tokens: int = 0
    score: float | None = None
    rated: tuple[Rated, ...] = ()
    """The workers that it was chosen from, best first, for explanations; of many those that came first."""


class Candidate(NamedTuple):
    """A waiting request that an order offers to the matcher."""

    request: RequestView
    overdue: bool = False
    """It has waited too long to be passed over any longer: if it fits nowhere, one worker is reserved for it."""
    in_turn: bool = True
    """False: the turn of earlier candidates comes first, so it leaves them the workers that they would start on
    next."""
    may_pass: bool = True
    """It may use room that an earlier candidate leaves unused because that one waits for a better worker."""


Matches = Mapping[WorkerId, int]
"""Tokens of the request's prefix in each worker's cache; workers that hold nothing are absent."""


class Question(NamedTuple):
    """What a placement is asked: which of these workers is best for this request?"""

    request: RequestView
    matches: Matches
    workers: Sequence[WorkerView]
    """All that could ever serve the request, with room or without; never none."""
    now: float


Ranked = tuple[WorkerView, float, Reason]
"""One worker in a ranking, its cost and its reason.

The cost is in the rule's own unit, lower is better; comparable within one ranking only. A plain tuple, because a
ranking has one for each worker, and a named one costs a call each.
"""


@value
class Usage:
    """What an attempt really cost, as the worker reports it or as far as it was seen."""

    input_tokens: int
    output_tokens: int
    cached_tokens: int | None = None
    """Prompt tokens the worker found in its cache; None where it does not say."""


# -- decisions: what the driver performs


@value
class Dispatch:
    ticket: Ticket
    request: RequestView
    place: Place
    waited_s: float
    waits: tuple[Wait, ...] = ()
    """What it waited for since it came, or came back; before the first of them, its turn."""


@value
class Reject:
    ticket: Ticket
    request: RequestView
    reason: RejectReason
    waited_s: float
    last_failure: AttemptFailure | None = None
    waits: tuple[Wait, ...] = ()
    """As in `Dispatch`."""


Decision = Dispatch | Reject


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What is going on, for metrics and the admin pages."""

    queued: int
    in_flight: int
    workers: tuple[WorkerView, ...] = ()
