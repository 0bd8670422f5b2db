"""A simulated engine as the driver holds it: what runs there, and what is known of it from outside.

A request on a pair has two attempts, one after the other: that on the prefill worker ends with the KV of the
prompt, that on the decode worker begins by fetching it.
"""

from dataclasses import dataclass, replace

from policies.model import Reading, Ticket, WorkerFacts
from router.lab.results import RequestResult, WorkerTotals
from workers.simulator.engine import Engine
from workers.simulator.sequences import EngineRequest, EngineSequence
from workers.simulator.steps import StepResult


@dataclass(slots=True, eq=False)
class Attempt:
    """A request on its engine, and how much of its answer the scheduler has heard of."""

    number: int
    """Its place in the workload."""
    record: RequestResult
    ticket: Ticket
    sequence: EngineSequence
    decoder: int | None = None
    """Of the first attempt of a pair: the worker that goes on with it."""
    prefiller: int | None = None
    """Of the second: the worker that holds the prompt's KV."""
    told: int = 0
    told_at: float = 0.0


class SimulatedWorker:
    """One engine and the attempts on it."""

    __slots__ = (
        "_busy_s",
        "_cached_elsewhere",
        "_elsewhere",
        "_most_waiting",
        "_prefills",
        "_requests",
        "attempts",
        "decoding",
        "due",
        "engine",
        "facts",
        "step_s",
        "telling",
    )

    def __init__(self, facts: WorkerFacts, engine: Engine) -> None:
        self.facts = facts
        self.engine = engine
        self.attempts: dict[str, Attempt] = {}
        self.decoding: dict[str, Attempt] = {}
        self.due: float | None = None
        """When the work in hand becomes visible; other moments in the driver's heap are void."""
        self.telling = False
        """A moment for telling output is in the heap."""
        self.step_s = 0.0
        """Duration of one step, as the last ones were."""
        self._busy_s = 0.0
        self._most_waiting = 0
        self._requests = 0
        self._prefills = 0
        self._elsewhere = self._cached_elsewhere = 0
        """Prompt tokens of second attempts, and those of them in the cache here: the first attempt counts them."""

    def take(
        self,
        request: EngineRequest,
        number: int,
        record: RequestResult,
        ticket: Ticket,
        now: float,
        *,
        decoder: int | None = None,
        prefiller: int | None = None,
    ) -> None:
        sequence = self.engine.add(request, now)
        self.attempts[request.id] = Attempt(number, record, ticket, sequence, decoder, prefiller)
        self._requests += 1
        self._most_waiting = max(self._most_waiting, self.engine.waiting)

    def advance(self, now: float) -> list[StepResult]:
        results = self.engine.advance(now)
        for result in results:
            self._busy_s += result.duration_s
            self.step_s = result.duration_s / result.steps
        return results

    def started(self, sequence: EngineSequence, at: float) -> Attempt:
        """Its first token is there."""
        attempt = self.attempts[sequence.request.id]
        attempt.record.first_at = attempt.told_at = at
        self.decoding[sequence.request.id] = attempt
        return attempt

    def finished(self, sequence: EngineSequence, at: float) -> Attempt:
        """Its last token is there."""
        attempt = self.attempts.pop(sequence.request.id)
        del self.decoding[sequence.request.id]
        attempt.record.ended = at
        if attempt.prefiller is None:
            attempt.record.cached_tokens = sequence.cached or 0
        else:
            self._elsewhere += sequence.prompt_tokens
            self._cached_elsewhere += sequence.cached or 0
        return attempt

    def handed_over(self, sequence: EngineSequence) -> Attempt:
        """Its prompt is computed, and waits here to be fetched."""
        attempt = self.attempts.pop(sequence.request.id)
        attempt.record.cached_tokens = sequence.cached or 0
        self._prefills += 1
        return attempt

    def read(self, now: float) -> WorkerFacts:
        """What a scrape of its metrics adds to the facts."""
        self.facts = replace(self.facts, reading=Reading(now, self.engine.running, self.engine.waiting))
        return self.facts

    def totals(self) -> WorkerTotals:
        counters = self.engine.counters
        return WorkerTotals(
            self._requests,
            counters.prefix_queries - self._elsewhere,
            counters.prefix_hits - self._cached_elsewhere,
            counters.generation_tokens - self._prefills,
            counters.preemptions,
            self._busy_s,
            self._most_waiting,
            counters.pulled_tokens,
        )
