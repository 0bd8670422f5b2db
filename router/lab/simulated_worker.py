"""A simulated engine as the driver holds it: the attempts on it, and what the gateway would know of it.

A request on a pair has two attempts, one after the other: that on the prefill worker ends with the KV of the
prompt, that on the decode worker begins by fetching it. An attempt for several answers is as many engine sequences
with one prompt, as vLLM runs `n`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from policies.model import Reading, Ticket, WorkerFacts
from router.lab.results import RequestResult, WorkerTotals
from router.lab.workload import Request
from workers.simulator.engine import Engine
from workers.simulator.sequences import Blocks, EngineRequest, EngineSequence, Part
from workers.simulator.steps import StepResult


@dataclass(slots=True, eq=False)
class Attempt:
    """A request on its engine, and how much of its answer the scheduler has been told."""

    number: int
    """Its place in the workload."""
    request: Request
    result: RequestResult
    ticket: Ticket
    decoder: int | None = None
    """Of the first attempt of a pair: the worker that goes on with it."""
    prefiller: int | None = None
    """Of the second: the worker that holds the prompt's KV."""
    part: Part = "whole"
    open: int = 0
    """Sequences that have not ended."""
    running: list[EngineSequence] = field(default_factory=list)
    """Those that have their first token and have not ended."""
    ended_tokens: int = 0
    """Output tokens of those that have."""
    started: bool = False
    reported: int = 0
    """Output tokens that the scheduler has been told of, and when it was told last."""
    reported_at: float = 0.0

    @property
    def engine_ids(self) -> list[str]:
        """The engine's names of its sequences."""
        answers = 1 if self.part == "prefill" else self.request.sequences
        return [f"{self.number}", *(f"{self.number}/{answer}" for answer in range(1, answers))]


class SimulatedWorker:
    """One engine and the attempts on it."""

    __slots__ = (
        "_busy_s",
        "_cached_uncounted",
        "_most_waiting",
        "_prefills",
        "_requests",
        "_uncounted",
        "attempts",
        "decoding",
        "draining",
        "due",
        "engine",
        "facts",
        "failures",
        "gone",
        "lost",
        "reporting",
        "step_s",
    )

    def __init__(self, facts: WorkerFacts, engine: Engine) -> None:
        self.facts = facts
        self.engine = engine
        self.attempts: dict[str, Attempt] = {}
        """By the engine's name of each sequence that has not ended."""
        self.decoding: dict[int, Attempt] = {}
        """Those that are streamed and have begun, by number."""
        self.due: float | None = None
        """When the planned work becomes visible; other moments in the driver's heap are void."""
        self.reporting = False
        """A moment for reporting output is in the heap."""
        self.step_s = 0.0
        """Duration of one step, as the last ones were."""
        self.draining = False
        """It gets no new requests and leaves when it has ended those it has."""
        self.lost = False
        """It has died."""
        self.gone = False
        """The scheduler has been told that it left."""
        self.failures = 0
        """Attempts that have failed here."""
        self._busy_s = 0.0
        self._most_waiting = 0
        self._requests = 0
        self._prefills = 0
        self._uncounted = self._cached_uncounted = 0
        """Prompt tokens of sequences whose prompt another one counts (the second attempt of a pair, further
        answers to one prompt), and those of them in the cache here."""

    def take(self, attempt: Attempt, now: float) -> None:
        """Begin an attempt: all its sequences are queued in the engine."""
        request = attempt.request
        names, full = request.block_names, len(request.key) // 8
        for number, engine_id in enumerate(attempt.engine_ids):
            prompt = Blocks(names if number == 0 else names[:full], request.input_tokens)
            asked = EngineRequest(
                engine_id,
                prompt,
                request.output_tokens,
                request.output_tokens,
                priority=request.priority,
                part=attempt.part,
            )
            self.engine.add(asked, now)
            self.attempts[engine_id] = attempt
            attempt.open += 1
        self._requests += 1
        self._most_waiting = max(self._most_waiting, self.engine.waiting)

    def advance(self, now: float) -> list[StepResult]:
        """Carry out the engine's work up to now."""
        results = self.engine.advance(now)
        for result in results:
            self._busy_s += result.duration_s
            self.step_s = result.duration_s / result.steps
        return results

    def started(self, sequence: EngineSequence, at: float) -> Attempt | None:
        """A sequence has its first token: its attempt, if it is the first one of it."""
        attempt = self.attempts[sequence.request.id]
        attempt.running.append(sequence)
        if attempt.started:
            return None
        attempt.started = True
        attempt.result.first_at = attempt.reported_at = at
        if attempt.request.streams:
            self.decoding[attempt.number] = attempt
        return attempt

    def finished(self, sequence: EngineSequence, at: float) -> Attempt | None:
        """A sequence has its last token: its attempt, if that has ended with it."""
        attempt = self.attempts.pop(sequence.request.id)
        attempt.running.remove(sequence)
        attempt.ended_tokens += attempt.request.output_tokens
        attempt.open -= 1
        if sequence.request.id == str(attempt.number) and attempt.prefiller is None:
            attempt.result.cached_tokens = sequence.cached or 0
        else:
            self._uncounted += sequence.prompt_tokens
            self._cached_uncounted += sequence.cached or 0
        if attempt.open:
            return None
        self.decoding.pop(attempt.number, None)
        attempt.result.ended = at
        return attempt

    def prefilled(self, sequence: EngineSequence) -> Attempt:
        """The prompt of a pair is computed, and waits here to be fetched."""
        attempt = self.attempts.pop(sequence.request.id)
        attempt.result.cached_tokens = sequence.cached or 0
        self._prefills += 1
        return attempt

    def drop(self, attempt: Attempt, now: float) -> None:
        """The attempt has broken off: nothing of it goes on here."""
        for engine_id in attempt.engine_ids:
            if self.attempts.pop(engine_id, None) is not None and not self.lost:
                self.engine.abort(engine_id, now)
        self.decoding.pop(attempt.number, None)

    def generated(self, attempt: Attempt, ahead: int) -> int:
        """Output tokens of an attempt so far; `ahead`: see `Engine.ahead`."""
        return attempt.ended_tokens + sum(self.engine.generated(each, ahead) for each in attempt.running)

    def all_attempts(self) -> Iterator[Attempt]:
        """Each attempt on it once."""
        return iter({attempt.number: attempt for attempt in self.attempts.values()}.values())

    def read(self, now: float) -> WorkerFacts:
        """The facts with what a scrape of its metrics shows now."""
        self.facts = replace(self.facts, reading=Reading(now, self.engine.running, self.engine.waiting))
        return self.facts

    def totals(self) -> WorkerTotals:
        """What the engine has counted."""
        counters = self.engine.counters
        return WorkerTotals(
            self._requests,
            counters.prefix_queries - self._uncounted,
            counters.prefix_hits - self._cached_uncounted,
            counters.generation_tokens - self._prefills,
            counters.preemptions,
            self._busy_s,
            self._most_waiting,
            counters.pulled_tokens,
        )
