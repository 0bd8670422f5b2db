"""One vLLM engine in simulated time: requests in, tokens out, the clock is an argument.

Times are seconds on whatever clock the caller keeps; they may not go backwards. A step's work is decided as it
starts, so who arrives during a step waits for the next, and its results become visible as it ends:

    engine.add(request, now)
    while (at := engine.next_event()) is not None:
        for result in engine.advance(at):
            ...
"""

from workers.simulator.kv_journal import KvEntry
from workers.simulator.profiles import Profile
from workers.simulator.scheduler import Scheduler
from workers.simulator.sequences import EngineConfig, EngineRequest, EngineSequence
from workers.simulator.steps import Counters, Plan, StepResult


class Engine:
    """Event-driven face of a `Scheduler`. Equal calls with an equal `seed` give equal results."""

    def __init__(self, config: EngineConfig, profile: Profile, seed: int = 0) -> None:
        self.config = config
        self.profile = profile
        self.seed = seed
        self._scheduler = Scheduler(config, profile)
        self._sequences: dict[str, EngineSequence] = {}
        self._plan: Plan | None = None
        self._free_at = 0.0
        """When the last step ended, or when the first request came after an idle time."""
        self._idle = True
        self._arrivals = 0

    @property
    def counters(self) -> Counters:
        return self._scheduler.counters

    @property
    def running(self) -> int:
        return self._scheduler.running

    @property
    def waiting(self) -> int:
        return self._scheduler.waiting + self._scheduler.transfers.count

    @property
    def deferred(self) -> int:
        """Those of the waiting whose prompt is on its way from another engine."""
        return self._scheduler.transfers.count

    @property
    def held(self) -> int:
        """Ended prefills whose KV waits to be fetched."""
        return len(self._scheduler.leases)

    @property
    def leases_expired(self) -> int:
        """Prefills whose KV was not fetched in time."""
        return self._scheduler.leases.expired

    @property
    def busy(self) -> bool:
        """Whether there is a step under way, or one to begin."""
        return not self._idle

    @property
    def kv_usage(self) -> float:
        """Share of the KV blocks held by requests, and for other engines to fetch, 0..1."""
        return self._scheduler.pool.used / self.config.kv_blocks

    @property
    def kv_blocks_used(self) -> int:
        return self._scheduler.pool.used

    def sequences(self) -> list[EngineSequence]:
        """Everything that waits or runs, in order of arrival."""
        return list(self._sequences.values())

    def generated(self, sequence: EngineSequence, ahead: int = 0) -> int:
        """Output tokens that are visible after the latest `advance`, or would be after `ahead` more steps."""
        return self._scheduler.generated(sequence, ahead)

    def ahead(self, now: float) -> int:
        """Steps that have ended by `now` since the latest `advance`, of those then planned. Changes nothing."""
        return 0 if self._plan is None else self._plan.done_by(now)

    def add(self, request: EngineRequest, now: float) -> EngineSequence:
        """Queue a request. Raises ValueError for an empty or too long prompt or an id in use."""
        if request.id in self._sequences:
            raise ValueError(f"request {request.id!r} is already there")
        if not 0 < request.prompt_tokens < self.config.max_model_len:
            raise ValueError(
                f"a prompt of {request.prompt_tokens} tokens, where 1 to {self.config.max_model_len - 1} fit"
            )
        self._settle(now)
        sequence = EngineSequence(request, self.config.block_size, self.seed, now, self._arrivals)
        sequence.limit_output(self.config.max_model_len - sequence.prompt_tokens)
        self._arrivals += 1
        self._sequences[request.id] = sequence
        self._scheduler.enqueue(sequence)
        if self._idle:
            self._idle, self._free_at = False, max(self._free_at, now)
        return sequence

    def abort(self, request_id: str, now: float) -> bool:
        """End a request at once; False where it is not there (any more)."""
        sequence = self._sequences.pop(request_id, None)
        if sequence is None:
            return False
        self._settle(now)
        sequence.finished_at = now
        ended = self._scheduler.abort(sequence)
        self._wake(now)
        return ended

    def set_pace(self, pace: float, now: float) -> None:
        """From the next step on each takes `pace` times as long as by the profile."""
        if pace != self._scheduler.pace:
            self._settle(now)
            self._scheduler.pace = pace

    def fetched(self, request_id: str, now: float) -> bool:
        """Another engine has the KV of a prefill that ended here, or it is not wanted: its blocks are free.

        False where it is not held: it was fetched before, or its lease has ended.
        """
        self._settle(now)
        self._scheduler.leases.expire(now)
        was_held = self._scheduler.leases.let_go(request_id)
        self._wake(now)
        return was_held

    def renew(self, request_id: str, now: float) -> bool:
        """Another engine is at it: the lease of a prefill begins anew. False where it is not held (any more)."""
        self._settle(now)
        self._scheduler.leases.expire(now)
        return self._scheduler.leases.renew(request_id, now)

    def reset_prefix_cache(self) -> bool:
        """Forget every prefix; False (and nothing forgotten) while a request holds blocks."""
        journal = self._scheduler.journal
        forgotten = self._scheduler.pool.forget()
        if forgotten and journal is not None:
            journal.cleared()
        return forgotten

    def take_kv_events(self) -> list[KvEntry]:
        """What the prefix cache has gained and lost since the latest call, in order; empty without a journal."""
        journal = self._scheduler.journal
        return [] if journal is None else journal.take()

    def next_event(self) -> float | None:
        """When the work under way becomes visible, None while idle. Plans the next step if none is planned."""
        plan = self._planned()
        return self._scheduler.next_outside() if plan is None else plan.end

    def next_step(self) -> float | None:
        """As `next_event`, but the end of the very next step, where a run of steps is planned as one."""
        plan = self._planned()
        return self._scheduler.next_outside() if plan is None else plan.start + plan.first_s

    def advance(self, now: float) -> list[StepResult]:
        """Carry out every step that ends by `now` and return their results in order."""
        results: list[StepResult] = []
        while (result := self.advance_one(now)) is not None:
            results.append(result)
        return results

    def advance_one(self, now: float) -> StepResult | None:
        """As `advance`, but only up to the end of the first plan: for callers who must bound their work."""
        while (plan := self._planned()) is None:
            if not self._meet_outside(now):
                return None
        steps = plan.done_by(now)
        return self._complete(plan, steps) if steps else None

    def _planned(self) -> Plan | None:
        if self._plan is None and not self._idle:
            self._plan = self._scheduler.plan(self._free_at)
            self._idle = self._plan is None
        return self._plan

    def _meet_outside(self, now: float) -> bool:
        """Idle, go on at the end of the next transfer or lease; False where none ends by `now`."""
        at = self._scheduler.next_outside()
        if at is None or at > now:
            return False
        self._idle, self._free_at = False, max(self._free_at, at)
        return True

    def _wake(self, now: float) -> None:
        """Blocks have become free: a waiting request may start although nothing runs."""
        if self._idle and self._scheduler.waiting:
            self._idle, self._free_at = False, max(self._free_at, now)

    def _complete(self, plan: Plan, steps: int) -> StepResult:
        result = self._scheduler.complete(plan, steps)
        self._plan, self._free_at = plan.rest(steps), result.at
        for sequence in result.finished:
            del self._sequences[sequence.request.id]
        return result

    def _settle(self, now: float) -> None:
        """Before an outside change at `now`: what has begun stays, the rest of a run of steps is planned anew."""
        while self._plan is None:
            if self._idle:
                if not self._meet_outside(now):
                    break
            elif now > self._free_at:
                self._planned()
            else:
                break
        if self._plan is not None and self._plan.steps > 1:
            self._plan.steps = self._plan.begun_by(now)
