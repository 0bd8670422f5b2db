"""What the edge and control say to each other: the messages, and the Protocol of the half that answers them.

    edge                          control
    identify ──────────────────►  whose key it is
    admit(facts) ──────────────►  waits in the queue  ──► Dispatch | Reject
    first_token, output(n),
    prefill_done, stored ──────►  what is under way
    failed(attempt) ───────────►  waits again         ──► Dispatch | Reject | None
                                  (an answer that has begun: with `resume_tokens`, to go on elsewhere)
    settled(usage) | cancelled ►  the request's one end
    routes() ──────────────────►  snapshot: which names exist, and where workers are

The edge owns bytes, sockets and streams; control owns every fact that requests share (fleet, schedulers, parties,
quotas, who stores which response, which pairs fit). Neither imports the other; `app` joins them. Today a message
is a plain call in one process. Each one is a value without live objects, so that tomorrow it can cross a socket.

Invariants: after `admit` has been called, a request ends exactly once, by a `Reject`, by `settled`, by `failed`
with `answering` and nothing to resume from, or by `cancelled`; events of a request that has ended change nothing.
"""

import math
from collections.abc import Mapping
from enum import Enum
from typing import Literal, Protocol

import msgspec

from policies.model import AttemptFailure, Outcome, Reason, Usage, WorkerId
from workers.http.tls import TlsFiles

ContinuationMode = Literal["off", "exact", "best_effort"]
"""How far streams go on at another worker when theirs dies: never; where the answer is one that the dead worker
could have given with the same probability; also where it is drawn otherwise."""


class RejectKind(Enum):
    """Why control turns a request away; the edge gives each its status."""

    BAD_REQUEST = "bad_request"
    UNAUTHORIZED = "unauthorized"
    NO_MODEL = "no_model"
    NOT_FOUND = "not_found"
    WRONG_METHOD = "wrong_method"
    TOO_LARGE = "too_large"
    """The body has more bytes than are read."""
    OVER_QUOTA = "over_quota"
    """This client asks for more than its limits."""
    OVERLOADED = "overloaded"
    """Come back later: the queue is full, the wait was too long, every worker is busy."""
    UNAVAILABLE = "unavailable"
    """No worker can serve this model now."""
    RELAY = "relay"
    """What the worker has answered is the answer: the request is at fault, or no other worker knows more."""
    WORKER_FAILED = "worker_failed"
    WORKER_TIMEOUT = "worker_timeout"


class Reject(msgspec.Struct, frozen=True, gc=False):
    """The request is not served. `message` is for the person who sent it."""

    kind: RejectKind
    message: str
    retry_after_s: float | None = None
    param: str | None = None
    """The field that is wrong."""
    headers: tuple[tuple[bytes, bytes], ...] = ()
    """For the answer: how the client's limits stand."""


class Identity(msgspec.Struct, frozen=True, gc=False):
    """The sender of one request."""

    client: str
    """Name for labels and fairness, such as `team` or `team/user`; empty as long as it is not known."""
    account: str
    """Whom the limits count for: `team`, for all its users together."""
    weight: float = 1.0
    limits_of: str = ""
    """The configured client whose limits the account has; empty: none."""
    key_owner: str = ""
    """The configured client whose key was sent; empty where no key is needed. Stored responses are its own."""
    priority_limit: int | None = None
    """The most urgent priority that its requests may name, lower being more urgent; None: any."""
    team: str = ""
    """The team above the account, for fairness; empty: none."""
    cache_group: str = ""
    """Which clients it shares prefix caches with; empty: all."""


class Facts(msgspec.Struct, frozen=True, gc=False):
    """A request as control knows it. Ids are unique among the requests under way."""

    id: str
    identity: Identity
    model: str
    """The served name that it asks for, as `RouteTable.find` gave it."""
    age_s: float = 0.0
    """Since its first byte."""
    prompt: bytes = b""
    """Key bytes: everything that the chat template reads, or token ids."""
    unit_bytes: int = 1
    """4: `prompt` holds token ids, little-endian; 1: text."""
    prompt_bytes: int = 0
    """How long the key of text is before it is cut."""
    all_there: bool = True
    """The key is all of the prompt but its media, and nothing else: its length says how many tokens that has."""
    input_tokens: int | None = None
    """Where they have been counted; None: to be estimated from the key."""
    salt: str | None = None
    """Separates caches of equal token ids; keys of text hold it already."""
    prompts: int = 1
    media: tuple[str, ...] = ()
    """Digests of images, sounds and files."""
    sequences: int = 1
    max_output_tokens: int | None = None
    streams: bool = False
    priority: int = 0
    session: str | None = None
    previous_response: str | None = None
    """The stored response that it goes on from."""
    references: tuple[tuple[str, str], ...] = ()
    """All that it names of what workers store: field and id."""
    response: str | None = None
    """The id under which its own answer is to be stored, if the client names one."""
    whole: bool = False
    """One worker has to serve it from its prompt to its end."""


class Unscheduled(msgspec.Struct, frozen=True, gc=False):
    """A request that passes a worker without the scheduler (tokenizing, reranking, stored responses)."""

    id: str
    identity: Identity
    model: str | None
    """The served name, as `RouteTable.find` gave it; None: control finds the model by `response`."""
    response: str | None = None
    """The stored response that it is about."""


class Dispatch(msgspec.Struct, frozen=True, gc=False):
    """Send the request to this worker now."""

    model: str
    """The served name to send."""
    worker: WorkerId
    prefill: WorkerId | None = None
    """This one computes the prompt first, for `worker` to go on from."""
    attempt: int = 1
    reason: Reason = Reason.ONLY_CHOICE
    matched_tokens: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    """Expected, of all sequences together."""
    waited_s: float = 0.0
    limits: tuple[tuple[bytes, bytes], ...] = ()
    """Headers for the answer: how the client's limits stand."""


class Failed(msgspec.Struct, frozen=True, gc=False):
    """An attempt came to nothing."""

    id: str
    worker: WorkerId
    reason: AttemptFailure
    why: str
    """For people, clients among them; never parsed."""
    status: int | None = None
    """Of the worker's answer, which the edge still has; None: there was none, or not all of it."""
    answering: bool = False
    """The client has seen a part of the answer, so that the request cannot start anew."""
    fetching: bool = False
    """The worker was to fetch KV that another one had computed."""
    resume_tokens: int | None = None
    """Of the answer, that have come, where it can go on from them at another worker; None: it cannot."""


class Settled(msgspec.Struct, frozen=True, gc=False):
    """The worker has done all it will do for the request."""

    id: str
    outcome: Outcome
    usage: Usage
    exact: bool = False
    """The usage is what the worker reported, not an estimate."""
    fetched: bool = False
    """The worker has gone on from KV that another one had computed."""
    not_found: bool = False
    """The worker says that what was asked for, such as the model, does not exist."""


class Route(msgspec.Struct, frozen=True, gc=False):
    """Where a model name leads."""

    model: str
    """The base model, which names the pool."""
    served_name: str
    """The name that the pool's workers know."""
    rewrite: str | None = None
    """The name to put into the body, where the client used the router's own alias."""


class WorkerAddress(msgspec.Struct, frozen=True, gc=False):
    """How a worker is reached."""

    id: WorkerId
    url: str
    headers: tuple[tuple[bytes, bytes], ...] = ()
    """What every request to it carries: its own key, and the rank behind a shared URL."""
    served_names: frozenset[str] = frozenset()
    routable: bool = True
    tls: TlsFiles | None = None
    """Certificates for an https:// URL; None: the system's authorities, and none of our own."""
    host_name: str | None = None
    """For the Host header and the certificate, where `url` holds one of the name's addresses."""
    silence_limit_s: float = math.inf
    """How long a request may be silent there: finite while the worker is known not to work."""
    max_model_len: int | None = None
    """Tokens that a prompt and its answer may have together, where the worker says."""
    kv_events: bool | None = None
    """Whether it publishes KV events, by the configuration; None: that does not say."""


SHOWN_CHARACTERS = 200
"""How much of a client's string is repeated in an error or a log line."""


def shown(text: str, limit: int = SHOWN_CHARACTERS) -> str:
    """A client's string as errors and log lines repeat it: cut, with an ellipsis, beyond `limit` characters."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


class RouteTable(msgspec.Struct, frozen=True, gc=False):
    """Every name that a client may use and every worker. Replaced as a whole when something changes."""

    models: tuple[str, ...] = ()
    """Base models, sorted."""
    names: Mapping[str, Route] = {}
    workers: Mapping[WorkerId, WorkerAddress] = {}
    keys_needed: bool = False
    """Requests without a key are turned away."""
    expected: frozenset[str] = frozenset()
    """Names that a worker is to serve and does not yet: it is loading, or restarting."""

    def find(self, model: str | None) -> Route | Reject:
        """The route of a name; None, or as for vLLM an empty one, means the only model. Errors in vLLM's words."""
        if not self.models and (not model or model not in self.expected):
            return Reject(
                RejectKind.UNAVAILABLE, "No worker has been reached yet, so no model is known.", retry_after_s=2
            )
        if model:
            found = self.names.get(model)
            if found is not None:
                return found
            if model in self.expected:
                message = f"The model `{model}` is not ready: its worker has not loaded it yet."
                return Reject(RejectKind.UNAVAILABLE, message, retry_after_s=5)
            known = ", ".join(sorted(self.names))
            message = f"The model `{shown(model)}` does not exist. Valid aliases: {known}."
            return Reject(RejectKind.NO_MODEL, message, param="model")
        if len(self.models) > 1:
            message = f"`model` is missing, and there are several: {', '.join(self.models)}."
            return Reject(RejectKind.BAD_REQUEST, message, param="model")
        return Route(self.models[0], self.models[0])


class Control(Protocol):
    """The half that owns what requests share. One call is one message."""

    def identify(self, keys: tuple[bytes, ...], user: str | None, address: str | None = None) -> Identity | Reject:
        """Who is asking: SHA-256 digests of the keys that were sent, and the body's `user` once it is known.

        `address`: the client's, at the first look at its keys; it waits there who has sent too many wrong ones.
        """

    def routes(self) -> RouteTable: ...

    async def look_again(self, model: str) -> None:
        """A client names a model that is in no table: ask the workers what they serve now, then `routes` knows."""

    async def admit(self, facts: Facts | Unscheduled) -> Dispatch | Reject:
        """Take a request in; returns when it may run."""

    def first_token(self, request: str) -> None: ...

    def prefill_done(self, request: str) -> None:
        """The first worker of a pair has the prompt; the second one is next."""

    def output(self, request: str, tokens: int) -> None:
        """`tokens` more tokens have come."""

    def stored(self, request: str, response: str) -> None:
        """The worker keeps the answer under this id."""

    async def failed(self, failure: Failed) -> Dispatch | Reject | None:
        """An attempt came to nothing; what to do next. None: the request has ended.

        Of an answer that has begun and can go on (`resume_tokens`): where it does, or why it does not.
        """

    def settled(self, end: Settled) -> None: ...

    def cancelled(self, request: str) -> None:
        """Nothing more comes of it: give back whatever is held. Harmless after the end."""
