"""The second driver of the scheduler: a virtual clock and simulated engines, where the gateway has real ones.

One heap of moments. The earliest one happens, the scheduler is told of it in the same words that the gateway uses,
and its decisions are carried out at once:

    arrival ──────────────────► submit ───────────────┐                 ┌─► engine.add
    a step ends ──────────────► first_token, settled ─┼─► decisions ────┤
    every 32 tokens or 250 ms ► output ───────────────┤                 └─► rejected
    every 5 s ────────────────► worker_changed ───────┤
    a worker comes or goes ───► worker_joined, _left, attempt_failed
    a pair's prompt is done ──► prefill_done, and engine.add on the decode worker

The scheduler is told what the gateway would know: the estimate of an answer's length, never the truth, which only
the engine gets; with text keys an estimate of the prompt's length, too; of an answer that is not streamed only its
end. Equal workloads and setups give equal runs.

Requests and replies take the time on their way that the setup's machine says, none by default, and engines that
share its cores slow one another. What the lab leaves out: the gateway's own cost, clients that leave early, and
what adapters cost an engine (their loading, and the larger step of a batch with several).
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from heapq import heappop, heappush

from policies.model import AttemptFailure, Decision, Dispatch, PrefixKey, RequestView, Stage, Usage, WorkerFacts
from policies.scheduler.loop import SchedulerLoop
from router.control.scheduler_factory import make_scheduler
from router.control.token_ratio import TokenRatio
from router.lab.results import RequestResult, Run
from router.lab.setup import STAGES, Setup
from router.lab.simulated_worker import Attempt, SimulatedWorker
from router.lab.text_keys import prompt_text
from router.lab.workload import BASE_NAME, UNIT_BYTES, Request, Workload
from workers.simulator.engine import Engine
from workers.simulator.sequences import EngineConfig, EngineSequence
from workers.simulator.steps import StepResult

_OUTPUT_EVERY = 32
_OUTPUT_EVERY_S = 0.25
"""How often the scheduler is told of output, as in the gateway: whichever comes first."""
_SUSPECT_AFTER = 3
"""Failed attempts in a row after which the gateway prefers other workers."""
_PROGRESS_EVERY = 100

_STEP, _REPLY, _REPORT, _READ, _REACH, _ARRIVE, _ASK, _CHANGE, _FOUND_LOST, _ENTER = range(10)
"""Kinds of moment, in this order where several fall together: a step of an engine ends, what a step brought comes
back, the output of its answers is reported, its metrics are read, the workload comes to its next request, a
request that had to wait for another one arrives, the scheduler wants to be asked, a worker comes or goes, a health
check finds a worker dead, a dispatched request reaches its engine."""


class NeverEndsError(RuntimeError):
    """Requests wait and nothing is ever going to happen: a fault of the policies that were run."""


def replay(workload: Workload, setup: Setup, progress: Callable[[int], None] | None = None) -> Run:
    """Run a workload to its end. `progress` is called now and then with the number of requests that have ended.

    A request that can never run is rejected. One that is to come `after` another arrives when that has ended, in
    whatever way. Raises NeverEndsError, and SetupError where the setup does not go with the workload.
    """
    started = time.perf_counter()
    driver = _Driver(workload, setup, progress or (lambda _: None))
    driver.run()
    totals = [worker.totals() for worker in driver.workers]
    return Run(driver.results, totals, time.perf_counter() - started, driver.fault())


class _Driver:
    """One replay.

    Invariants: a request is either still to be reached, or held, or with the scheduler, or running, or ended; at
    most one moment of kind _STEP per worker counts, the one at `SimulatedWorker.due`.
    """

    def __init__(self, workload: Workload, setup: Setup, progress: Callable[[int], None]) -> None:
        self.results: list[RequestResult] = []
        self.workers: list[SimulatedWorker] = []
        self._workload = workload
        self._setup = setup
        self._limits = setup.engine_config(workload.block_tokens)
        self._progress = progress
        self._scheduler = make_scheduler(setup.config, setup.seed)
        self._steps = SchedulerLoop(self._scheduler, self._perform, self._wake_at)
        self._by_id: dict[str, int] = {}
        self._requests = enumerate(workload.requests)
        self._heap: list[tuple[float, int, int]] = []
        """Moments: time, kind, and the number of the worker, request or change."""
        self._touched: set[int] = set()
        """Workers whose next step has to be planned before time goes on."""
        self._machine = setup.machine
        self._sent: dict[int, tuple[int, Attempt]] = {}
        """Attempts on their way to an engine, by request: the worker's number, and the attempt."""
        self._brought: dict[int, deque[list[StepResult]]] = {}
        """What the steps of a worker have brought and the scheduler has not been told, the oldest first."""
        self._deadline: float | None = None
        self._held: dict[int, Request] = {}
        """Requests that have not arrived yet."""
        self._followers: dict[int, list[int]] = {}
        """Requests that wait for the end of another, by its number."""
        self._open: dict[int, Request] = {}
        """Requests that wait in the scheduler."""
        self._texts = setup.keys == "text"
        self._scale = TokenRatio()
        self._keys: dict[int, PrefixKey] = {}
        """Text keys of the requests that are not ended, to learn from their usage."""
        self._changes_left = len(setup.changes)
        self._pace = 1.0
        """What the engines' sharing of cores does to their steps."""
        self._ended = 0

    def run(self) -> None:
        """Let time pass until every request has ended."""
        heap = self._heap
        happen = (
            *(self._step, self._reply, self._report, self._read, self._reach, self._arrive, self._ask),
            *(self._change, self._found_lost, self._enter),
        )
        for number, stages in enumerate(self._setup.stages):
            self._join(stages, 0.0, self._setup.read_every_s * (number + 1) / self._setup.workers)
        for number, change in enumerate(self._setup.changes):
            heappush(heap, (change.at, _CHANGE, number))
        self._fetch()
        total, now = len(self._workload.requests), 0.0
        while self._ended < total:
            if self._touched and (not heap or heap[0][0] > now):
                self._plan_steps(now)
                continue
            if not heap:
                raise NeverEndsError(f"{len(self._open)} requests wait, and there is no worker any more")
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
        worker = self.workers[number]
        if worker.due != now:
            return
        worker.due = None
        self._touched.add(number)
        results = worker.advance(now)
        if self._machine.reply_s:
            self._brought.setdefault(number, deque()).append(results)
            heappush(self._heap, (now + self._machine.reply_s, _REPLY, number))
        else:
            self._tell(number, results, now)

    def _reply(self, number: int, now: float) -> None:
        """What a step brought is with the router."""
        results = self._brought[number].popleft()
        if not self.workers[number].lost:  # what was on its way is lost with it
            self._tell(number, results, now)

    def _report(self, number: int, now: float) -> None:
        """The scheduler is told how far the streamed answers of a worker are."""
        worker = self.workers[number]
        worker.reporting = False
        if not worker.decoding:
            return
        ahead = worker.engine.ahead(now)
        output = self._scheduler.output
        long_ago = now - _OUTPUT_EVERY_S + 1e-9
        for attempt in worker.decoding.values():
            tokens = worker.generated(attempt, ahead) - attempt.reported
            if tokens >= _OUTPUT_EVERY or (tokens and attempt.reported_at <= long_ago):
                attempt.reported += tokens
                attempt.reported_at = now
                output(attempt.ticket, tokens, now)
        self._report_later(number, now)
        self._steps.after_event(now)

    def _read(self, number: int, now: float) -> None:
        """A worker's metrics are scraped."""
        worker = self.workers[number]
        if worker.lost or worker.gone:
            return
        self._scheduler.worker_changed(worker.read(now), now)
        self._steps.after_event(now)
        coming = self._deadline is not None or self._held or self._changes_left or self._sent
        if not coming and not any(each.attempts for each in self.workers):
            raise NeverEndsError(
                f"{len(self._open)} requests wait, no worker is busy, and the scheduler starts none of them"
            )
        heappush(self._heap, (now + self._setup.read_every_s, _READ, number))

    def _reach(self, number: int, now: float) -> None:
        """The workload comes to a request: it arrives, or it waits for the end of another one."""
        self._fetch()
        after = self._held[number].after
        if after is None:
            self._arrive(number, now)
            return
        before, delay = after
        ended = self.results[before].ended
        if ended is None:
            self._followers.setdefault(before, []).append(number)
        else:
            heappush(self._heap, (max(now, ended + delay), _ARRIVE, number))

    def _arrive(self, number: int, now: float) -> None:
        request, result = self._held.pop(number), self.results[number]
        result.arrived = now
        tokens = request.input_tokens + request.output_tokens
        if tokens > self._limits.max_model_len:
            most = self._limits.max_model_len
            why = f"a prompt and its answer have {tokens} tokens, where {most} fit (max_model_len)"
            self._rejected(number, why, now)
            return
        self._open[number] = request
        self._scheduler.submit(self._view(number, request, now), now)
        self._steps.after_event(now)

    def _ask(self, _: int, now: float) -> None:
        if self._deadline == now:
            self._deadline = None
            self._steps.wake(now)

    # -- the scheduler

    def _view(self, number: int, request: Request, now: float) -> RequestView:
        """The request as the gateway would describe it."""
        name, tokens = request.served_name, request.input_tokens
        if self._texts:
            text, per_byte = prompt_text(request, self._workload.block_tokens), self._scale.tokens_per_byte(name)
            key = self._keys[number] = PrefixKey(text, 1, per_byte)
            tokens = max(1, int(len(text) * per_byte))
        else:
            key = PrefixKey(request.key, UNIT_BYTES, self._workload.block_tokens)
        length = self._scheduler.lengths.estimate(request.client, name, tokens, None)
        return RequestView(
            id=str(number),
            client=request.client,
            served_name=name,
            key=key,
            input_tokens=tokens,
            exact=not self._texts,
            expected_output_tokens=length.expected,
            arrived=now,
            length=length,
            sequences=request.sequences,
            streams=request.streams,
            weight=request.weight,
            priority=request.priority,
            session=request.session,
        )

    def _wake_at(self, deadline: float | None) -> None:
        self._deadline = deadline
        if deadline is not None:
            heappush(self._heap, (deadline, _ASK, 0))

    def _perform(self, decision: Decision, now: float) -> bool:
        """Carry out a decision; returns whether an attempt has failed at once, so that there is more to decide."""
        number = int(decision.request.id)
        if isinstance(decision, Dispatch):
            return not self._dispatch(number, decision, now)
        self._open.pop(number)
        self._rejected(number, decision.reason.value, now)
        return False

    def _dispatch(self, number: int, decision: Dispatch, now: float) -> bool:
        """Begin an attempt. False where its worker is dead: then it has failed, and the request waits again."""
        placement = decision.place.placement
        decoder = self._by_id[placement.decode]
        first = decoder if placement.prefill is None else self._by_id[placement.prefill]
        result = self.results[number]
        result.attempts += 1
        if self.workers[first].lost:
            self._scheduler.attempt_failed(
                decision.ticket, self._failed_on(first, now), AttemptFailure.CONNECT, 0, now
            )
            return False
        result.dispatched = now
        result.pair = placement.prefill is not None
        attempt = Attempt(number, self._open.pop(number), result, decision.ticket)
        if result.pair:
            attempt.decoder, attempt.part = decoder, "prefill"
        if self._machine.request_s:
            self._sent[number] = first, attempt
            heappush(self._heap, (now + self._machine.request_s, _ENTER, number))
        else:
            self.workers[first].take(attempt, now)
            self._touched.add(first)
        return True

    def _enter(self, number: int, now: float) -> None:
        """A request that was sent has reached its engine, or finds it dead."""
        first, attempt = self._sent.pop(number)
        if self.workers[first].lost:
            self._open[number] = attempt.request
            self._scheduler.attempt_failed(
                attempt.ticket, self._failed_on(first, now), AttemptFailure.CONNECT, 0, now
            )
            self._steps.after_event(now)
            return
        self.workers[first].take(attempt, now)
        self._touched.add(first)

    def _rejected(self, number: int, why: str, now: float) -> None:
        result = self.results[number]
        result.rejected, result.ended = why, now
        self._end(number, now)

    # -- the engines

    def _tell(self, number: int, results: list[StepResult], now: float) -> None:
        """Tell the scheduler of the beginnings and ends in an engine's work, and carry out what it decides."""
        worker, scheduler = self.workers[number], self._scheduler
        reply_s = self._machine.reply_s
        for result in results:
            for sequence in result.first:
                if sequence.request.part == "prefill":
                    continue
                begun = worker.started(sequence, result.at + reply_s)
                if begun is None:
                    continue
                if begun.prefiller is not None:
                    self._fetched(begun.prefiller, begun, now)
                if begun.request.streams:
                    scheduler.first_token(begun.ticket, now)
                    self._report_later(number, now)
            for sequence in result.finished:
                if sequence.request.part == "prefill":
                    self._hand_over(number, sequence, now)
                    continue
                ended = worker.finished(sequence, result.at + reply_s)
                if ended is not None:
                    outcome = ended.result
                    usage = Usage(outcome.input_tokens, outcome.output_tokens, outcome.cached_tokens)
                    worker.failures = 0
                    self._learn_from(ended.number, ended.request)
                    scheduler.settled(ended.ticket, usage, now)
                    self._end(ended.number, now)
        self._leave_if_drained(number, now)
        self._steps.after_event(now)

    def _hand_over(self, prefiller: int, sequence: EngineSequence, now: float) -> None:
        """The prompt of a pair is computed: its answer begins with fetching the KV."""
        before = self.workers[prefiller].prefilled(sequence)
        self._scheduler.prefill_done(before.ticket, now)
        decoder = before.decoder if before.decoder is not None else prefiller
        attempt = replace(before, part="decode", prefiller=prefiller, decoder=None, open=0, running=[])
        if self.workers[decoder].lost:
            self._break_off(attempt, decoder, now)
            return
        self.workers[decoder].take(attempt, now)
        self._touched.add(decoder)

    def _fetched(self, prefiller: int, attempt: Attempt, now: float) -> None:
        """The KV of a prompt is where it is needed, or is not needed: the prefill worker's blocks are free."""
        worker = self.workers[prefiller]
        if not worker.lost:
            worker.engine.fetched(attempt.engine_ids[0], now)
            self._touched.add(prefiller)
            self._leave_if_drained(prefiller, now)

    def _report_later(self, number: int, now: float) -> None:
        worker = self.workers[number]
        if not worker.reporting:
            worker.reporting = True
            heappush(self._heap, (now + min(_OUTPUT_EVERY_S, _OUTPUT_EVERY * worker.step_s), _REPORT, number))

    def _plan_steps(self, now: float) -> None:
        """Everything of this moment has happened: engines that were touched begin their next step."""
        if self._machine.cores is not None:
            alive = [number for number, worker in enumerate(self.workers) if not worker.lost]
            pace = self._machine.pace(sum(self.workers[number].engine.busy for number in alive))
            if pace != self._pace:
                self._pace = pace
                for number in alive:
                    self.workers[number].engine.set_pace(pace, now)
                self._touched.update(alive)
        for number in sorted(self._touched):
            worker = self.workers[number]
            due = None if worker.lost else worker.engine.next_event()
            if due is not None and due != worker.due:
                heappush(self._heap, (due, _STEP, number))
            worker.due = due
        self._touched.clear()

    # -- workers that come and go

    def _join(self, stages: frozenset[Stage], now: float, read_at: float) -> None:
        number = len(self.workers)
        facts = _facts(number, stages, self._limits, self._workload.served_names)
        self.workers.append(SimulatedWorker(facts, Engine(self._limits, self._setup.profile)))
        self._by_id[facts.id] = number
        self._scheduler.worker_joined(facts, now)
        heappush(self._heap, (read_at, _READ, number))

    def _change(self, number: int, now: float) -> None:
        """A worker joins, begins to drain, or dies."""
        change = self._setup.changes[number]
        self._changes_left -= 1
        if change.kind == "join":
            self._join(STAGES[change.role], now, now + self._setup.read_every_s)
        elif change.kind == "drain":
            worker = self.workers[change.worker]
            worker.draining = True
            worker.facts = replace(worker.facts, usable=False)
            self._scheduler.worker_changed(worker.facts, now)
            self._leave_if_drained(change.worker, now)
        else:
            self._lose(change.worker, now)
        self._steps.after_event(now)

    def _leave_if_drained(self, number: int, now: float) -> None:
        worker = self.workers[number]
        if worker.draining and not worker.gone and not worker.attempts and not worker.engine.held:
            worker.gone = True
            self._scheduler.worker_left(worker.facts.id, now)

    def _lose(self, number: int, now: float) -> None:
        """A worker dies; so do attempts elsewhere that have not fetched their prompt's KV from it."""
        lost = self.workers[number]
        lost.lost, lost.due = True, None
        for attempt in lost.all_attempts():
            self._break_off(attempt, number, now)
        for other in self.workers:
            if not other.lost:
                for attempt in [a for a in other.all_attempts() if a.prefiller == number and not a.started]:
                    other.drop(attempt, now)
                    self._break_off(attempt, number, now)
        self._touched.update(range(len(self.workers)))
        heappush(self._heap, (now + self._setup.probe_every_s, _FOUND_LOST, number))

    def _found_lost(self, number: int, now: float) -> None:
        self.workers[number].gone = True
        self._scheduler.worker_left(self.workers[number].facts.id, now)
        self._steps.after_event(now)

    def _break_off(self, attempt: Attempt, number: int, now: float) -> None:
        """An attempt ends because a worker is dead, and its request with it if the client has seen output."""
        worker, result = self.workers[number], attempt.result
        seen = worker.generated(attempt, worker.engine.ahead(now)) if attempt.request.streams else 0
        worker.drop(attempt, now)
        if attempt.prefiller not in {None, number} and not attempt.started:
            self._fetched(attempt.prefiller, attempt, now)
        name = self._failed_on(number, now)
        self._scheduler.attempt_failed(attempt.ticket, name, AttemptFailure.LOST, seen, now)
        if seen:
            result.failed, result.ended = f"{name} was lost", now
            self._end(attempt.number, now)
        else:
            result.first_at = None
            self._open[attempt.number] = attempt.request

    def _failed_on(self, number: int, now: float) -> str:
        """Note a failure of a worker, as the gateway does; returns its name."""
        worker = self.workers[number]
        worker.failures += 1
        if worker.failures == _SUSPECT_AFTER and not worker.gone:
            worker.facts = replace(worker.facts, suspect=True)
            self._scheduler.worker_changed(worker.facts, now)
        return worker.facts.id

    # -- the workload

    def _fetch(self) -> None:
        """Take the next request out of the workload."""
        number, request = next(self._requests, (0, None))
        if request is not None:
            self.results.append(
                RequestResult(
                    request.client,
                    request.weight,
                    request.input_tokens,
                    request.output_tokens * request.sequences,
                    request.at,
                    streams=request.streams,
                    sequences=request.sequences,
                    targets=request.targets,
                )
            )
            self._held[number] = request
            heappush(self._heap, (request.at, _REACH, number))

    def _learn_from(self, number: int, request: Request) -> None:
        """Usage tells how many tokens a text has."""
        key = self._keys.pop(number, None)
        if key is not None:
            self._scale.saw(request.served_name, len(key.data), 0, request.input_tokens)

    def _end(self, number: int, now: float) -> None:
        """A request has ended: those that follow it may come."""
        self._ended += 1
        self._keys.pop(number, None)
        for follower in self._followers.pop(number, ()):
            _, delay = self._held[follower].after or (0, 0.0)
            heappush(self._heap, (now + delay, _ARRIVE, follower))
        if self._ended % _PROGRESS_EVERY == 0:
            self._progress(self._ended)


def _facts(number: int, stages: frozenset[Stage], limits: EngineConfig, names: tuple[str, ...]) -> WorkerFacts:
    """What the gateway knows of a worker that it has launched."""
    return WorkerFacts(
        id=f"worker-{number}",
        served_names=frozenset(names),
        stages=stages,
        slots=limits.max_num_seqs,
        adapters=frozenset(names) - {BASE_NAME},
        kv_tokens=limits.kv_blocks * limits.block_size,
        max_batched_tokens=limits.max_num_batched_tokens,
    )
