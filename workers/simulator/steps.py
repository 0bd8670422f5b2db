"""What an engine is about to do, what came of it, and what it has done so far."""

from dataclasses import dataclass, field
from math import sqrt

from workers.simulator.sequences import EngineSequence, Reason


@dataclass(slots=True)
class Counters:
    """Totals since the engine started."""

    steps: int = 0
    preemptions: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    pulled_tokens: int = 0
    """Prompt tokens whose KV came from another engine."""
    ended: dict[Reason, int] = field(default_factory=lambda: dict.fromkeys(Reason, 0))


@dataclass(slots=True)
class Plan:
    """`steps` equal decode steps in a row, or one step of any kind, from `start` on (seconds)."""

    start: float
    first_s: float
    growth_s: float
    steps: int
    chunks: dict[EngineSequence, int]

    def duration(self, steps: int) -> float:
        return steps * self.first_s + self.growth_s * steps * (steps - 1) / 2

    @property
    def end(self) -> float:
        return self.start + self.duration(self.steps)

    def done_by(self, now: float) -> int:
        """How many of its steps have ended at `now`."""
        if now >= self.end:
            return self.steps
        elapsed = now - self.start
        if elapsed < self.first_s:
            return 0
        half = self.first_s - self.growth_s / 2
        # Smaller root of growth/2 k^2 + half k = elapsed in the form that is stable for a small growth.
        k = int(2 * elapsed / (half + sqrt(half * half + 2 * self.growth_s * elapsed)))
        while self.start + self.duration(k + 1) <= now:
            k += 1
        while k and self.start + self.duration(k) > now:
            k -= 1
        return k

    def rest(self, done: int) -> "Plan | None":
        """What is left after this many steps, or None. The next one may have begun: it is not changed."""
        if done == self.steps:
            return None
        first = self.first_s + done * self.growth_s
        return Plan(self.start + self.duration(done), first, self.growth_s, self.steps - done, {})

    def begun_by(self, now: float) -> int:
        """How many of its steps have started before `now`, at least one."""
        done = self.done_by(now)
        begun = done + (now > self.start + self.duration(done))
        return min(self.steps, max(1, begun))


@dataclass(slots=True)
class StepResult:
    """What `steps` steps made visible at time `at`, the end of the last of them."""

    at: float
    duration_s: float
    steps: int
    decode_tokens: int
    prefill_tokens: int
    first: list[EngineSequence]
    """Sequences that produced their first token."""
    finished: list[EngineSequence]
