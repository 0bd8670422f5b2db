"""Continuous batching with chunked prefill over a block pool: what one engine does in its next step.

After vLLM's v1 scheduler. Every step has a budget of `max_num_batched_tokens`: first one token for each decoding
sequence, then chunks of the prefills under way, then waiting requests in order while a sequence slot and blocks
are left. When a running sequence finds no block, the latest admitted one is preempted: its blocks go back and
all its tokens are computed again later.

A step is planned and then completed; requests may arrive and leave in between. Decoding costs nothing per
sequence and step: what is kept are heaps of the steps at which a sequence needs a block and at which one ends.
The steps up to the next end are planned as one run, which makes long simulations cheap and changes no result; the
blocks that the run needs are taken, in order, as it is completed. Where they might not suffice, or another request
waits for them, the run stops at the first step that needs one.

Invariants between calls: `context` is the sum of prompt + generated tokens over the decoding sequences, who are
`decoding` many; a running sequence is either in `_prefilling` or decodes; a waiting or ended one holds no block,
unless it is in `transfers` or `leases`.
"""

from heapq import heappop, heappush

from workers.simulator.kv_cache import BlockPool
from workers.simulator.kv_journal import KvJournal
from workers.simulator.profiles import Profile, pairs
from workers.simulator.sequences import EngineConfig, EngineSequence, Reason
from workers.simulator.steps import Counters, Plan, StepResult
from workers.simulator.transfers import Leases, Transfers


class Scheduler:
    """The state of one engine, without a clock."""

    def __init__(self, config: EngineConfig, profile: Profile) -> None:
        self.config = config
        self.profile = profile
        self.pace = 1.0
        """How many times as long as by the profile a step takes: other engines share its cores."""
        self.pool = BlockPool(config.kv_blocks, caching=config.prefix_caching)
        self.journal = KvJournal(self.pool, config.block_size) if config.kv_events else None
        self.counters = Counters()
        self.leases = Leases(self.pool, config.kv_lease_s)
        self.transfers = Transfers()
        self.decoding = 0
        self.context = 0
        self.waiting = 0
        self._running: dict[EngineSequence, None] = {}
        self._prefilling: dict[EngineSequence, None] = {}
        self._waiting: list[tuple[int, int, int, EngineSequence]] = []
        self._grows: list[tuple[int, int, int, EngineSequence]] = []
        """(step, order, life, sequence): needs a block as `step` starts. Void if the sequence has another life."""
        self._ends: list[tuple[int, int, int, EngineSequence]] = []
        """The same for sequences that end with `step`."""

    @property
    def running(self) -> int:
        return len(self._running)

    def generated(self, sequence: EngineSequence, ahead: int = 0) -> int:
        """Output tokens of a sequence so far, or `ahead` steps of decoding from now."""
        if sequence.decode_from < 0:
            return sequence.base
        return sequence.base + self.counters.steps + ahead - sequence.decode_from

    def enqueue(self, sequence: EngineSequence) -> None:
        rank = sequence.request.priority if self.config.scheduling == "priority" else 0
        heappush(self._waiting, (rank, sequence.order, sequence.life, sequence))
        self.waiting += 1

    def abort(self, sequence: EngineSequence) -> bool:
        """End a sequence now, False where it has ended already."""
        if sequence.done:
            return False
        if sequence.running:
            self._leave(sequence)
        elif sequence.blocks:
            self.transfers.count -= 1
            self.pool.release(sequence.blocks)
            sequence.blocks = []
        else:
            self.waiting -= 1
        self._end(sequence, Reason.ABORT)
        return True

    # Planning a step.

    def plan(self, start: float) -> Plan | None:
        """Decide the next step, or a run of equal ones; None where there is nothing to do."""
        chunks: dict[EngineSequence, int] = {}
        before = self.counters.preemptions
        self.leases.expire(start)
        self.transfers.arrive(start)
        self._grow(self.counters.steps, chunks)
        budget = self.config.max_num_batched_tokens - self.decoding
        budget = self._continue_prefills(chunks, budget)
        if self.counters.preemptions == before or not (chunks or self.decoding):
            self._admit(chunks, self._start_pulled(chunks, budget), start)
        if not chunks and not self.decoding:
            return None
        tokens, weight, samples = 0, 0.0, 0
        for sequence, chunk in chunks.items():
            tokens += chunk
            weight += pairs(sequence.computed, chunk)
            samples += sequence.computed + chunk == sequence.prompt_tokens + sequence.base
        first = self.pace * self.profile.step_s(self.decoding, self.context, tokens, weight, samples)
        quiet = not chunks and self.counters.preemptions == before
        growth = self.pace * self.profile.decode_growth_s(self.decoding)
        plan = Plan(start, first, growth, self._quiet_steps() if quiet else 1, chunks)
        if plan.steps > 1 and (at := self.next_outside()) is not None:
            plan.steps = plan.begun_by(at)
        return plan

    def next_outside(self) -> float | None:
        """When something happens by itself that may change the next plan: a transfer or a lease ends."""
        times = (self.transfers.next_end(), self.leases.next_end())
        return min((at for at in times if at is not None), default=None)

    def _grow(self, last: int, chunks: dict[EngineSequence, int]) -> None:
        """Give a block to each decoding sequence that needs one for its next token, for all steps up to `last`."""
        grows = self._grows
        while grows and grows[0][0] <= last:
            step, _, life, sequence = heappop(grows)
            if life != sequence.life:
                continue
            self._name_full(sequence, len(sequence.blocks))
            if not self._extend(sequence, 1, chunks):
                continue
            due = step + self.config.block_size
            if due <= sequence.finish_step:
                heappush(grows, (due, sequence.order, life, sequence))

    def _continue_prefills(self, chunks: dict[EngineSequence, int], budget: int) -> int:
        for sequence in list(self._prefilling):
            if budget <= 0:
                break
            if not sequence.running:  # preempted a moment ago for one before it
                continue
            chunk = min(sequence.prompt_tokens + sequence.base - sequence.computed, budget)
            fresh = self._blocks_for(sequence.computed + chunk) - len(sequence.blocks)
            if not self._extend(sequence, fresh, chunks):
                continue
            self._name_full(sequence, (sequence.computed + chunk) // self.config.block_size)
            chunks[sequence] = chunk
            budget -= chunk
        return budget

    def _start_pulled(self, chunks: dict[EngineSequence, int], budget: int) -> int:
        """Run those whose prompt has arrived: its last token is computed once more, for the first new one."""
        transfers = self.transfers
        while budget > 0 and len(self._running) < self.config.max_num_seqs and (one := transfers.next_ready()):
            transfers.start()
            one.running = True
            one.computed = one.prompt_tokens - 1
            self._running[one] = None
            self._prefilling[one] = None
            self._name_full(one, one.prompt_tokens // self.config.block_size)
            chunks[one] = 1
            budget -= 1
        return budget

    def _pull(self, sequence: EngineSequence, shared: list[int], start: float) -> bool:
        """Begin the transfer of what is not in the cache; False where its blocks are not free."""
        prompt = sequence.prompt_tokens
        blocks = self.pool.take(shared, self._blocks_for(prompt) - len(shared))
        if blocks is None:
            return False
        cached = len(shared) * self.config.block_size
        sequence.blocks = blocks
        sequence.named = len(shared)
        self._count_prompt(sequence, cached)
        sequence.pulled = prompt - cached
        self.counters.pulled_tokens += sequence.pulled
        transfer_s = sequence.request.transfer_s
        self.transfers.begin(
            sequence, start + (self.profile.transfer_s(sequence.pulled) if transfer_s is None else transfer_s)
        )
        return True

    def _admit(self, chunks: dict[EngineSequence, int], budget: int, start: float) -> None:
        config, waiting = self.config, self._waiting
        while waiting and budget > 0 and len(self._running) < config.max_num_seqs:
            _, _, life, sequence = waiting[0]
            if sequence.done or life != sequence.life:
                heappop(waiting)
                continue
            total = sequence.prompt_tokens + sequence.base
            shared = self.pool.match(sequence.names, (total - 1) // config.block_size)
            if sequence.request.part == "decode" and sequence.cached is None:
                if not self._pull(sequence, shared, start):
                    break
                heappop(waiting)
                self.waiting -= 1
                continue
            cached = len(shared) * config.block_size
            chunk = min(total - cached, budget)
            blocks = self.pool.take(shared, self._blocks_for(cached + chunk) - len(shared))
            if blocks is None:
                break
            heappop(waiting)
            self.waiting -= 1
            self._start(sequence, blocks, cached)
            self._name_full(sequence, (cached + chunk) // config.block_size)
            chunks[sequence] = chunk
            budget -= chunk

    def _start(self, sequence: EngineSequence, blocks: list[int], cached: int) -> None:
        sequence.running = True
        sequence.blocks = blocks
        sequence.computed = cached
        sequence.named = cached // self.config.block_size
        self._running[sequence] = None
        self._prefilling[sequence] = None
        if sequence.cached is None:
            self._count_prompt(sequence, cached)

    def _count_prompt(self, sequence: EngineSequence, cached: int) -> None:
        sequence.cached = min(cached, sequence.prompt_tokens - 1)
        self.counters.prompt_tokens += sequence.prompt_tokens
        self.counters.prefix_queries += sequence.prompt_tokens
        self.counters.prefix_hits += sequence.cached

    def _quiet_steps(self) -> int:
        """Steps from the next one on in which nothing changes but the lengths of the decoding sequences."""
        ends, grows, step = self._ends, self._grows, self.counters.steps
        while ends[0][2] != ends[0][3].life:
            heappop(ends)
        steps = ends[0][0] - step + 1
        blocks = self.decoding * (steps // self.config.block_size + 1)
        if not self.waiting and blocks <= self.pool.free:
            return steps
        while grows and grows[0][2] != grows[0][3].life:
            heappop(grows)
        return min(steps, grows[0][0] - step) if grows else steps

    # Blocks.

    def _blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.config.block_size)

    def _extend(self, sequence: EngineSequence, fresh: int, chunks: dict[EngineSequence, int]) -> bool:
        """Take `fresh` more blocks, preempting others for them; False where the sequence itself had to go."""
        if fresh <= 0:
            return True
        while (blocks := self.pool.take((), fresh)) is None:
            victim = self._victim()
            self._preempt(victim)
            chunks.pop(victim, None)
            if victim is sequence:
                return False
        sequence.blocks += blocks
        return True

    def _victim(self) -> EngineSequence:
        if self.config.scheduling == "fcfs":
            return next(reversed(self._running))
        return max(self._running, key=lambda sequence: (sequence.request.priority, sequence.order))

    def _preempt(self, sequence: EngineSequence) -> None:
        self._leave(sequence)
        self.counters.preemptions += 1
        self.enqueue(sequence)

    def _leave(self, sequence: EngineSequence) -> None:
        """Stop running: give back the blocks, keep the tokens generated so far."""
        generated = self.generated(sequence)
        if sequence.decode_from >= 0:
            self.decoding -= 1
            self.context -= sequence.prompt_tokens + generated
            self._name_full(sequence, (sequence.prompt_tokens + generated - 1) // self.config.block_size)
        else:
            del self._prefilling[sequence]
        del self._running[sequence]
        self.pool.release(sequence.blocks)
        sequence.blocks = []
        sequence.named = sequence.computed = 0
        sequence.base, sequence.decode_from = generated, -1
        sequence.life += 1
        sequence.running = False

    def _name_full(self, sequence: EngineSequence, full: int) -> None:
        """Make the first `full` blocks of a sequence known to later prompts."""
        if not self.config.prefix_caching:
            return
        for index in range(sequence.named, full):
            name = sequence.name_of(index, self.config.block_size)
            if name is None:
                break
            if self.pool.name(sequence.blocks[index], name) and self.journal is not None:
                self.journal.stored(sequence, index)
        sequence.named = max(sequence.named, full)

    # Completing a step.

    def complete(self, plan: Plan, steps: int) -> StepResult:
        """Carry out the first `steps` steps of a plan; what is left of it is its `rest`."""
        duration = plan.duration(steps)
        at = plan.start + duration
        counters = self.counters
        index = counters.steps
        counters.steps += steps
        decoded = self.decoding * steps
        self.context += decoded
        counters.generation_tokens += decoded
        self._grow(counters.steps - 1, plan.chunks)
        result = StepResult(at, duration, steps, decoded, sum(plan.chunks.values()), [], [])
        self._finish_decodes(result)
        for sequence, chunk in plan.chunks.items():
            if sequence.running:
                self._prefilled(sequence, chunk, index, result)
        return result

    def _finish_decodes(self, result: StepResult) -> None:
        ends, steps = self._ends, self.counters.steps
        while ends and ends[0][0] < steps:
            _, _, life, sequence = heappop(ends)
            if life == sequence.life:
                self._finish(sequence, result)

    def _prefilled(self, sequence: EngineSequence, chunk: int, step: int, result: StepResult) -> None:
        sequence.computed += chunk
        if sequence.computed < sequence.prompt_tokens + sequence.base:
            return
        sequence.base += 1
        self.counters.generation_tokens += 1
        if sequence.first_at is None:
            sequence.first_at = result.at
            result.first.append(sequence)
        del self._prefilling[sequence]
        sequence.decode_from = step + 1
        self.decoding += 1
        self.context += sequence.prompt_tokens + sequence.base
        if sequence.base >= sequence.target:
            self._finish(sequence, result)
            return
        sequence.finish_step = step + sequence.target - sequence.base
        heappush(self._ends, (sequence.finish_step, sequence.order, sequence.life, sequence))
        room = len(sequence.blocks) * self.config.block_size - sequence.computed
        if (due := step + 1 + room) <= sequence.finish_step:
            heappush(self._grows, (due, sequence.order, sequence.life, sequence))

    def _finish(self, sequence: EngineSequence, result: StepResult) -> None:
        if sequence.request.part == "prefill":
            self.leases.keep(sequence.request.id, sequence.blocks, result.at)
        self._leave(sequence)
        sequence.finished_at = result.at
        self._end(sequence, sequence.reason)
        result.finished.append(sequence)

    def _end(self, sequence: EngineSequence, reason: Reason) -> None:
        sequence.done = True
        sequence.reason = reason
        sequence.life += 1
        self.counters.ended[reason] += 1
