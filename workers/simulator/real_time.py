"""One engine on the real clock: calls of the HTTP surface in, wake-ups of their streams out.

A timer fires when the engine's next step ends, at most every 2 ms; all steps that are due then are carried out
together. A stream is woken for its first token and its end at once, and for tokens in between at most
`wakes_per_s` times per second over the whole worker: under load several tokens share a chunk, as in vLLM.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from workers.simulator.engine import Engine
from workers.simulator.kv_journal import KvEntry
from workers.simulator.profiles import Profile
from workers.simulator.reply import Reply
from workers.simulator.sequences import EngineConfig, EngineRequest, EngineSequence, Reason
from workers.simulator.steps import StepResult

_TICK_S = 0.002
_PLANS_PER_TICK = 500
"""Bound of one turn of the event loop when the engine has to catch up."""
TTFT_BUCKETS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
E2E_BUCKETS = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0)


class Histogram:
    """A Prometheus histogram."""

    __slots__ = ("bounds", "count", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * len(bounds)
        self.count = 0
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.count += 1
        self.total += value
        for index, bound in enumerate(self.bounds):
            if value <= bound:
                self.counts[index] += 1


@dataclass(slots=True, eq=False)
class Generation:
    """One sequence of a call: what it will say, how far it is, how far it has been sent."""

    index: int
    reply: Reply
    prompt: list[int]
    sequence: EngineSequence | None = None
    sent: int = 0
    told: bool = False
    """Its finish reason has been sent."""
    finish: str | None = None
    final: int = 0
    """Tokens it had when it ended."""

    def ended(self, stop: int) -> bool:
        """Whether no token follows the first `stop` ones."""
        return self.finish is not None and stop == self.final

    def news(self, start: int, stop: int) -> str:
        """Text that comes with its tokens start..stop."""
        return self.reply.text(start, stop, ended=self.ended(stop))

    def text(self) -> str:
        """All of it, once it has ended."""
        return self.reply.text(0, self.final, ended=True)

    @property
    def cached(self) -> int:
        return (self.sequence.cached or 0) if self.sequence is not None else 0


@dataclass(slots=True, eq=False)
class Call:
    """One HTTP request: its generations and the one place where it waits for them."""

    id: str
    generations: list[Generation]
    streaming: bool
    gone: bool = False
    """The client has left, or the worker has cut it off."""
    open: int = 0
    waiter: asyncio.Future[None] | None = field(default=None, repr=False)
    on_first: Callable[[], None] = field(default=lambda: None, repr=False)
    """Called when a generation has its first token."""
    hand_out: dict[str, Any] | None = None
    """Parameters for the worker that is to go on with this prefill."""

    def wake(self) -> None:
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)

    async def wait(self) -> None:
        """Until something may have changed."""
        self.waiter = asyncio.get_running_loop().create_future()
        try:
            await self.waiter
        finally:
            self.waiter = None


class LiveEngine:
    """Drives an engine by the running event loop. `speed` is simulated seconds per second."""

    def __init__(
        self, config: EngineConfig, profile: Profile, *, seed: int, speed: float, wakes_per_s: float = 4000.0
    ) -> None:
        self.engine = Engine(config, profile, seed)
        self.ttft = Histogram(TTFT_BUCKETS)
        self.e2e = Histogram(E2E_BUCKETS)
        self._base_speed = speed
        self._wakes_per_s = wakes_per_s
        self._loop = asyncio.get_running_loop()
        self._speed = speed
        self._real0, self._simulated0 = self._loop.time(), 0.0
        self.on_kv_events: Callable[[list[KvEntry]], None] = lambda _: None
        """Told at the end of a step what the prefix cache has gained and lost since the last."""
        self._owner: dict[str, tuple[Call, Generation]] = {}
        self._calls: dict[Call, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._ticked = self._flushed = 0.0

    @property
    def calls(self) -> int:
        """Calls with at least one generation under way."""
        return len(self._calls)

    @property
    def speed(self) -> float:
        return self._speed

    def now(self) -> float:
        """Simulated seconds."""
        return self._simulated0 + (self._loop.time() - self._real0) * self._speed

    def real_now(self) -> float:
        """Seconds of the event loop's clock."""
        return self._loop.time()

    def slow_down(self, factor: float) -> None:
        """From now on take `factor` times as long as normal."""
        self._simulated0, self._real0 = self.now(), self._loop.time()
        self._speed = self._base_speed / max(factor, 1e-9)
        self._reschedule()

    def start(self, call: Call, requests: list[EngineRequest]) -> None:
        """Queue one engine request per generation of the call. Raises ValueError as `Engine.add`."""
        now = self.now()
        for request, generation in zip(requests, call.generations, strict=True):
            generation.sequence = self.engine.add(request, now)
            self._owner[request.id] = (call, generation)
        call.open = len(requests)
        self._calls[call] = None
        self._reschedule()

    def progress(self, generation: Generation) -> int:
        """Tokens of a generation that are visible."""
        if generation.finish is not None:
            return generation.final
        return self.engine.generated(generation.sequence) if generation.sequence is not None else 0

    def abort(self, call: Call) -> None:
        """Free the engine of a call at once; what it has so far stays readable, with finish reason `abort`."""
        now = self.now()
        for generation in call.generations:
            if generation.finish is None and generation.sequence is not None:
                self.engine.abort(generation.sequence.request.id, now)
                self._close(call, generation, Reason.ABORT)
        call.wake()
        self._reschedule()

    def fetched(self, request_id: str) -> bool:
        """Another worker has the KV of a prefill, or does not want it."""
        was_held = self.engine.fetched(request_id, self.now())
        self._reschedule()
        return was_held

    def abort_all(self) -> None:
        for call in list(self._calls):
            self.abort(call)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _close(self, call: Call, generation: Generation, reason: Reason) -> None:
        sequence = generation.sequence
        if sequence is None:
            return
        generation.final = self.engine.generated(sequence)
        if reason is not Reason.ABORT:
            reason = Reason.STOP if generation.reply.ended_by_stop else Reason.LENGTH
        generation.finish = reason.value
        del self._owner[sequence.request.id]
        call.open -= 1
        if not call.open:
            del self._calls[call]

    def _reschedule(self) -> None:
        at = self.engine.next_step()
        if at is None:
            self.close()
            return
        due = max(self._real0 + (at - self._simulated0) / self._speed, self._ticked + _TICK_S)
        if self._timer is not None:
            if due == self._timer_at:
                return
            self._timer.cancel()
        self._timer_at = due
        self._timer = self._loop.call_at(due, self._tick)

    def _tick(self) -> None:
        self._timer = None
        now = self.now()
        for _ in range(_PLANS_PER_TICK):
            result = self.engine.advance_one(now)
            if result is None:
                break
            self._deliver(result)
        self._ticked = real = self._loop.time()
        if real - self._flushed >= len(self._calls) / self._wakes_per_s:
            self._flushed = real
            for call in self._calls:
                if call.streaming and call.waiter is not None:
                    call.wake()
        self._reschedule()

    def _deliver(self, result: StepResult) -> None:
        if entries := self.engine.take_kv_events():
            self.on_kv_events(entries)
        for sequence in result.first:
            self.ttft.observe((result.at - sequence.arrived) / self._speed)
            owner = self._owner.get(sequence.request.id)
            if owner is not None:
                owner[0].on_first()
                if owner[0].streaming:
                    owner[0].wake()
        for sequence in result.finished:
            self.e2e.observe((result.at - sequence.arrived) / self._speed)
            call, generation = self._owner[sequence.request.id]
            self._close(call, generation, sequence.reason)
            if call.streaming or not call.open:
                call.wake()
