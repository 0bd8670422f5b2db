"""What a replay leaves behind: one result per request, one row of totals per worker."""

from dataclasses import dataclass

from router.lab.workload import Targets


@dataclass(slots=True, eq=False)
class RequestResult:
    """What became of one request. Times are seconds from the start of the workload."""

    client: str
    weight: float
    input_tokens: int
    output_tokens: int
    """Of all its answers together."""
    arrived: float
    dispatched: float | None = None
    """When the scheduler gave it to a worker, the last time."""
    first_at: float | None = None
    """When its first token was made. A client that wants a whole answer sees nothing of that."""
    ended: float | None = None
    cached_tokens: int = 0
    """Prompt tokens found in the worker's cache, by the first of its answers."""
    pair: bool = False
    """Its prompt was computed by one worker, its answer by another."""
    rejected: str | None = None
    """Why it was not served."""
    failed: str | None = None
    """Why its answer broke off after a part of it."""
    streams: bool = True
    sequences: int = 1
    targets: Targets | None = None
    attempts: int = 0
    """Times that it was dispatched."""

    @property
    def completed(self) -> bool:
        return self.ended is not None and self.rejected is None and self.failed is None

    @property
    def service(self) -> int:
        """What it is worth to its client: input + 2 x output."""
        return self.input_tokens + 2 * self.output_tokens


@dataclass(frozen=True, slots=True)
class WorkerTotals:
    """What one engine counted. A prompt and an answer count once each, where they were computed."""

    requests: int
    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    preemptions: int
    busy_s: float
    most_waiting: int
    """The longest queue inside the engine, counted whenever a request came in."""
    pulled_tokens: int = 0
    """Prompt tokens whose KV came from another engine."""

    @property
    def work(self) -> int:
        """Tokens that it had to compute, in the units of service: prompt tokens not in its cache + 2 x output."""
        return self.prompt_tokens - self.cached_tokens + 2 * self.generated_tokens


@dataclass(frozen=True, slots=True)
class Run:
    """A replay from its first arrival to its last end."""

    results: list[RequestResult]
    """In the order of the workload."""
    workers: list[WorkerTotals]
    wall_s: float
    """Real time that it took."""
    fault: str | None = None
    """What the policies raised, if they did: then the fallback placed some of the requests."""
