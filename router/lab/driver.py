"""The other driver of the scheduler: virtual time for a clock, simulated engines for vLLM.

One heap of moments. The earliest thing happens, the scheduler hears of it in the words that the gateway uses
(`router/control/dispatcher.py`, `router/edge/execution/attempt.py`), and what it decides is done at once:

    arrival ──────────────────► submit ───────────────┐                 ┌─► engine.add
    a step ends ──────────────► first_token, settled ─┼─► decisions ────┤
    every 32 tokens or 250 ms ► output ───────────────┤                 └─► rejected
    every 5 s ────────────────► worker_changed ───────┘
    a pair's prompt is done ──► prefill_done, and engine.add on the decode worker

The scheduler is told what the gateway would know: the estimate of an answer's length, never the truth, which only
the engine gets. Equal workloads and setups give equal runs.

What the lab leaves out: the network, the gateway's own cost, workers that fail, clients that leave early.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from heapq import heappop, heappush

from policies.model import Dispatch, PrefixKey, RequestView, Stage, Usage, WorkerFacts
from router.control.scheduler_factory import make_scheduler
from router.lab.results import RequestResult, Run
from router.lab.setup import Setup
from router.lab.simulated_worker import SimulatedWorker
from router.lab.workload import UNIT_BYTES, Request, Workload
from workers.simulator.engine import Engine
from workers.simulator.sequences import Blocks, EngineConfig, EngineRequest, EngineSequence

_OUTPUT_EVERY = 32
_OUTPUT_EVERY_S = 0.25
"""How often the scheduler hears of output, as in the gateway: whichever comes first."""
_SOONEST_S = 1e-4
"""A deadline that has passed already is looked at so much later, as in the gateway."""
_SERVED_NAME = "model"
_PROGRESS_EVERY = 100

_STEP, _TELL, _READ, _REACH, _ARRIVE, _DECIDE = range(6)
"""Kinds of moment, in this order where several fall together: a step of an engine ends, the output of its answers
is told, its metrics are read, the workload comes to its next request, a request that had to wait for another one
arrives, the scheduler wants to be asked."""


class NeverEndsError(RuntimeError):
    """Requests wait and nothing is ever going to happen: a fault of the policies that were run."""


def replay(workload: Workload, setup: Setup, progress: Callable[[int], None] | None = None) -> Run:
    """Run a workload to its end. `progress` hears, every now and then, how many requests have ended.

    A request that can never run is rejected. One that is to come `after` another arrives when that has ended, in
    whatever way. Raises NeverEndsError, and SetupError where the setup does not go with the workload.
    """
    started = time.perf_counter()
    driver = _Driver(workload, setup, progress or (lambda _: None))
    driver.run()
    totals = [worker.totals() for worker in driver.workers]
    return Run(driver.records, totals, time.perf_counter() - started, driver.fault())


class _Driver:
    """One replay.

    Invariants: a request is either still to be reached, or held, or with the scheduler, or ended; at most one
    moment of kind _STEP per worker counts, the one at `SimulatedWorker.due`.
    """

    def __init__(self, workload: Workload, setup: Setup, progress: Callable[[int], None]) -> None:
        limits = setup.engine_config(workload.block_tokens)
        self.records: list[RequestResult] = []
        self.workers = [
            SimulatedWorker(_facts(number, stages, limits), Engine(limits, setup.profile))
            for number, stages in enumerate(setup.stages)
        ]
        self._workload = workload
        self._most_tokens = limits.max_model_len
        self._read_every_s = setup.read_every_s
        self._progress = progress
        self._scheduler = make_scheduler(setup.config, setup.seed)
        self._by_id = {worker.facts.id: number for number, worker in enumerate(self.workers)}
        self._requests = enumerate(workload.requests)
        self._heap: list[tuple[float, int, int]] = []
        """Moments: time, kind, and the number of the worker or request."""
        self._touched: set[int] = set()
        """Workers whose next step has to be planned before time goes on."""
        self._deadline: float | None = None
        self._held: dict[int, Request] = {}
        """Requests that have not arrived yet."""
        self._followers: dict[int, list[int]] = {}
        """Who waits for the end of whom."""
        self._open: dict[int, Request] = {}
        """Requests that are with the scheduler."""
        self._ended = 0

    def run(self) -> None:
        """Let time pass until every request has ended."""
        heap = self._heap
        happen = (self._step, self._tell, self._read, self._reach, self._arrive, self._ask)
        for number, worker in enumerate(self.workers):
            self._scheduler.worker_joined(worker.facts, 0.0)
            heappush(heap, (self._read_every_s * (number + 1) / len(self.workers), _READ, number))
        self._fetch()
        total, now = len(self._workload.requests), 0.0
        while self._ended < total:
            if self._touched and heap[0][0] > now:
                self._plan_steps()
                continue
            now, kind, number = heappop(heap)
            happen[kind](number, now)
        self._progress(self._ended)

    def fault(self) -> str | None:
        """How often a policy raised, and the last exception."""
        faults = self._scheduler.faults
        return f"the policies raised {faults.count} times, at last {faults.last!r}" if faults.count else None

    # -- moments

    def _step(self, number: int, now: float) -> None:
        """An engine has something to show."""
        if self.workers[number].due == now:
            self._advance(number, now)
            self._decide(now)

    def _tell(self, number: int, now: float) -> None:
        """The scheduler hears how far the answers of a worker are."""
        worker = self.workers[number]
        worker.telling = False
        if not worker.decoding:
            return
        ahead = worker.engine.ahead(now)
        generated, output = worker.engine.generated, self._scheduler.output
        long_ago = now - _OUTPUT_EVERY_S + 1e-9
        for attempt in worker.decoding.values():
            tokens = generated(attempt.sequence, ahead) - attempt.told
            if tokens >= _OUTPUT_EVERY or (tokens and attempt.told_at <= long_ago):
                attempt.told += tokens
                attempt.told_at = now
                output(attempt.ticket, tokens, now)
        self._tell_later(number, now)
        self._decide(now)

    def _read(self, number: int, now: float) -> None:
        """A worker's metrics are scraped."""
        self._scheduler.worker_changed(self.workers[number].read(now), now)
        self._decide(now)
        if self._deadline is None and not self._held and not any(worker.attempts for worker in self.workers):
            raise NeverEndsError(
                f"{len(self._open)} requests wait, no worker is busy, and the scheduler lets them"
            )
        heappush(self._heap, (now + self._read_every_s, _READ, number))

    def _reach(self, number: int, now: float) -> None:
        """The workload comes to a request: it arrives, or it waits for the end of another one."""
        self._fetch()
        after = self._held[number].after
        if after is None:
            self._arrive(number, now)
            return
        before, delay = after
        ended = self.records[before].ended
        if ended is None:
            self._followers.setdefault(before, []).append(number)
        else:
            heappush(self._heap, (max(now, ended + delay), _ARRIVE, number))

    def _arrive(self, number: int, now: float) -> None:
        request, record = self._held.pop(number), self.records[number]
        record.arrived = now
        tokens = request.input_tokens + request.output_tokens
        if tokens > self._most_tokens:
            why = f"a prompt and its answer have {tokens} tokens, where {self._most_tokens} fit (max_model_len)"
            self._rejected(number, why, now)
            return
        self._open[number] = request
        self._scheduler.submit(self._view(number, request, now), now)
        self._decide(now)

    def _ask(self, _: int, now: float) -> None:
        if self._deadline == now:
            self._deadline = None
            self._decide(now)

    # -- the scheduler

    def _view(self, number: int, request: Request, now: float) -> RequestView:
        length = self._scheduler.lengths.estimate(request.client, _SERVED_NAME, request.input_tokens, None)
        return RequestView(
            id=str(number),
            client=request.client,
            served_name=_SERVED_NAME,
            key=PrefixKey(request.key, UNIT_BYTES, self._workload.block_tokens),
            input_tokens=request.input_tokens,
            expected_output_tokens=length.expected,
            arrived=now,
            length=length,
            streams=True,
            weight=request.weight,
            priority=request.priority,
            session=request.session,
        )

    def _decide(self, now: float) -> None:
        """Do what the scheduler has decided, and note when it wants to be asked again."""
        for decision in self._scheduler.decisions(now):
            number = int(decision.request.id)
            if isinstance(decision, Dispatch):
                self._dispatch(number, decision, now)
            else:
                self._open.pop(number)
                self._rejected(number, decision.reason.value, now)
        deadline = self._scheduler.next_deadline()
        if deadline is not None and deadline <= now:
            deadline = now + _SOONEST_S
        if deadline != self._deadline:
            self._deadline = deadline
            if deadline is not None:
                heappush(self._heap, (deadline, _DECIDE, 0))

    def _dispatch(self, number: int, decision: Dispatch, now: float) -> None:
        placement = decision.place.placement
        decoder = self._by_id[placement.decode]
        request = self._open.pop(number)
        prompt = Blocks(request.block_names, request.input_tokens)
        asked = EngineRequest(
            decision.request.id, prompt, request.output_tokens, request.output_tokens, priority=request.priority
        )
        record = self.records[number]
        record.dispatched = now
        record.pair = placement.prefill is not None
        if placement.prefill is None:
            self.workers[decoder].take(asked, number, record, decision.ticket, now)
            self._touched.add(decoder)
        else:
            prefiller = self._by_id[placement.prefill]
            asked = replace(asked, part="prefill")
            self.workers[prefiller].take(asked, number, record, decision.ticket, now, decoder=decoder)
            self._touched.add(prefiller)

    def _rejected(self, number: int, why: str, now: float) -> None:
        record = self.records[number]
        record.rejected, record.ended = why, now
        self._release(number, now)

    # -- the engines

    def _advance(self, number: int, now: float) -> None:
        """Carry out an engine's work up to now, and tell the scheduler of the beginnings and ends in it."""
        worker, scheduler = self.workers[number], self._scheduler
        worker.due = None
        self._touched.add(number)
        for result in worker.advance(now):
            for sequence in result.first:
                if sequence.request.part == "prefill":
                    continue
                attempt = worker.started(sequence, result.at)
                if attempt.prefiller is not None:
                    self._fetched(attempt.prefiller, sequence.request.id, now)
                scheduler.first_token(attempt.ticket, now)
                self._tell_later(number, now)
            for sequence in result.finished:
                if sequence.request.part == "prefill":
                    self._hand_over(number, sequence, now)
                    continue
                attempt = worker.finished(sequence, result.at)
                record = attempt.record
                usage = Usage(record.input_tokens, record.output_tokens, record.cached_tokens)
                scheduler.settled(attempt.ticket, usage, now)
                self._release(attempt.number, now)

    def _hand_over(self, prefiller: int, sequence: EngineSequence, now: float) -> None:
        """The prompt of a pair is computed: its answer begins with fetching the KV."""
        attempt = self.workers[prefiller].handed_over(sequence)
        self._scheduler.prefill_done(attempt.ticket, now)
        decoder = attempt.decoder if attempt.decoder is not None else prefiller
        asked = replace(sequence.request, part="decode")
        self.workers[decoder].take(asked, attempt.number, attempt.record, attempt.ticket, now, prefiller=prefiller)
        self._touched.add(decoder)

    def _fetched(self, prefiller: int, request_id: str, now: float) -> None:
        """The KV of a prompt is where it is needed; the prefill worker's blocks are free."""
        self.workers[prefiller].engine.fetched(request_id, now)
        self._touched.add(prefiller)

    def _tell_later(self, number: int, now: float) -> None:
        worker = self.workers[number]
        if not worker.telling:
            worker.telling = True
            heappush(self._heap, (now + min(_OUTPUT_EVERY_S, _OUTPUT_EVERY * worker.step_s), _TELL, number))

    def _plan_steps(self) -> None:
        """Everything of this moment has happened: engines that were touched begin their next step."""
        for number in sorted(self._touched):
            worker = self.workers[number]
            due = worker.engine.next_event()
            if due is not None and due != worker.due:
                heappush(self._heap, (due, _STEP, number))
            worker.due = due
        self._touched.clear()

    # -- the workload

    def _fetch(self) -> None:
        """Take the next request out of the workload."""
        number, request = next(self._requests, (0, None))
        if request is not None:
            record = RequestResult(
                request.client, request.weight, request.input_tokens, request.output_tokens, request.at
            )
            self.records.append(record)
            self._held[number] = request
            heappush(self._heap, (request.at, _REACH, number))

    def _release(self, number: int, now: float) -> None:
        """A request has ended: those that follow it may come."""
        self._ended += 1
        for follower in self._followers.pop(number, ()):
            _, delay = self._held[follower].after or (0, 0.0)
            heappush(self._heap, (now + delay, _ARRIVE, follower))
        if self._ended % _PROGRESS_EVERY == 0:
            self._progress(self._ended)


def _facts(number: int, stages: frozenset[Stage], limits: EngineConfig) -> WorkerFacts:
    """What the gateway knows of a worker that it has launched."""
    return WorkerFacts(
        id=f"worker-{number}",
        served_names=frozenset([_SERVED_NAME]),
        stages=stages,
        slots=limits.max_num_seqs,
        kv_tokens=limits.kv_blocks * limits.block_size,
        max_batched_tokens=limits.max_num_batched_tokens,
    )
