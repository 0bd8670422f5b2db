"""A worker: one engine of one vLLM server, in one life of its process.

A vLLM server with data parallelism runs several engines (ranks) behind one URL; each has its own KV cache, so
each is a worker of its own. When the process restarts the cache is empty: a new *epoch* begins, and with it a
new worker. The identity is therefore `(url, rank, epoch)`, written as one string where other rooms need a name.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from workers.http.tls import TlsFiles
from workers.kv_events.sources import KvSource


class State(Enum):
    """What may be asked of a worker. Values are the label values of the `fairlead_worker_state` metric."""

    STARTING = "starting"
    """Never seen healthy yet."""
    UP = "up"
    SUSPECT = "suspect"
    """Recent requests failed; still routable when nothing better is left. Expires by itself."""
    DOWN = "down"
    DRAINING = "draining"
    """Finishes what it has, takes nothing new."""


class Exclusion(Enum):
    """Why a worker gets no requests, or only as the last resort.

    A closed list: values are labels of the `fairlead_worker_excluded` metric. `Worker.why` says the same in words.
    """

    STARTING = "starting"
    PROBE_FAILED = "probe_failed"
    REQUESTS_FAILED = "requests_failed"
    ASLEEP = "asleep"
    SHUTTING_DOWN = "shutting_down"
    """It says so itself, by refusing new requests."""
    DRAINED = "drained"
    """By the operator."""
    REMOVED = "removed"
    """By the operator; it leaves once it is idle."""
    NO_MODEL = "no_model"
    """It is reached, but does not serve what it should, or does not say what it serves."""


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What an operator says of one server. Only `url` is required; the rest is discovered or learned."""

    url: str
    """Origin and optional path prefix, no trailing slash: `http://10.0.0.7:8000`."""
    roles: frozenset[str] = frozenset({"prefill", "decode"})
    model: str | None = None
    """The base model it is expected to serve; None: whatever `/v1/models` says."""
    api_key: str | None = field(default=None, repr=False)
    tls: TlsFiles | None = None
    """Authorities and client certificate for an https:// URL; None: the system's authorities, no certificate."""
    host_name: str | None = None
    """The name for the Host header and the certificate, where `url` holds one of the name's addresses."""
    each_address: bool = True
    """A host name with several addresses of one family stands for as many servers; False: for one."""
    resolves_adapters: bool = False
    """Its LoRA resolvers load an adapter when a request first names it: names that it does not list may exist."""
    max_num_seqs: int | None = None
    """Sequences the engine runs at once; None: learned."""
    max_num_batched_tokens: int | None = None
    kv_tokens: int | None = None
    """Tokens of KV cache per engine; None: read from its metrics."""
    data_parallel: int = 1
    """Engines (ranks) behind the URL."""
    kv_events: tuple[KvSource, ...] | None = None
    """Where its engines publish their KV events, by rank; None: where `/kv_event_sources` says; empty: nowhere."""


@dataclass(frozen=True, slots=True)
class Scrape:
    """One reading of a worker's own metrics. `at` is the reader's monotonic clock, seconds."""

    at: float
    running: int
    waiting: int
    kv_usage: float
    """Share of the KV cache in use, 0..1."""
    kv_tokens: int | None = None
    """Capacity of the KV cache in tokens, where the worker tells it."""
    block_size: int | None = None
    prefix_queries: int = 0
    """Prompt tokens looked up in the prefix cache since the process started."""
    prefix_hits: int = 0
    preemptions: int = 0
    nixl: bool = False
    """Its KV goes to other workers, and comes from them, over NIXL."""
    awake: bool = True
    process_started: float | None = None
    """Unix time at which the server's process started: a change is a new epoch."""


@dataclass(frozen=True, slots=True)
class Worker:
    """A snapshot of one worker, rebuilt whenever something about it changes."""

    spec: WorkerSpec
    rank: int = 0
    epoch: int = 0
    state: State = State.STARTING
    model: str | None = None
    """Base model id it serves, None until known."""
    served_names: frozenset[str] = frozenset()
    """Every model name it answers to: the base, its aliases, LoRA adapters."""
    adapters: frozenset[str] = frozenset()
    """Those of the served names that are LoRA adapters."""
    roots: Mapping[str, str] = field(default_factory=dict)
    """What `/v1/models` says a name stands for: a model's path or hub id, by name."""
    expected: frozenset[str] = frozenset()
    """Names that it is to serve and does not yet: as configured, or as it did before its process restarted."""
    max_model_len: int | None = None
    version: str | None = None
    scrape: Scrape | None = None
    stale: bool = True
    """The scrape is missing or older than the fleet allows."""
    silence_limit_s: float = math.inf
    """How long a request that it has may be silent before it belongs elsewhere: finite while the worker is down or
    its engine sleeps."""
    why: str = ""
    """Why it is in this state, for people: `probe failed: connection refused`."""
    excluded: Exclusion | None = None
    """The same as a closed list; None for a worker in good standing."""

    @property
    def id(self) -> str:
        """`url`, with `#rank` where the server has several engines and `@epoch` after a restart."""
        rank = f"#{self.rank}" if self.spec.data_parallel > 1 else ""
        return f"{self.spec.url}{rank}{f'@{self.epoch}' if self.epoch else ''}"

    @property
    def routable(self) -> bool:
        return self.state in (State.UP, State.SUSPECT) and self.model is not None


@dataclass(frozen=True, slots=True)
class WorkerJoined:
    """A worker that was not there before. Its model may not be known yet: it is routable only later."""

    worker: Worker


@dataclass(frozen=True, slots=True)
class WorkerChanged:
    """The same worker, with another snapshot.

    Its `model` changes at most once in its life, from None to a name; whatever the engine holds is kept.
    """

    worker: Worker


@dataclass(frozen=True, slots=True)
class WorkerLeft:
    """A worker that is no more, and its cache with it. Streams that still run there end by themselves."""

    id: str
    why: str


FleetEvent = WorkerJoined | WorkerChanged | WorkerLeft
