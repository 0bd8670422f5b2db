"""Should this request run on one worker, or should one compute its prompt and another its answer?

A fleet may have workers for prefill only, for decode only, and *colocated* ones that do both. `Disaggregation`
names the kinds in which a request may run, the better one first; the placement ranks the workers of one kind at a
time and knows no roles:

- colocated: the placement ranks the colocated workers;
- a pair: the placement ranks the prefill workers, whose caches and load are what matters there; decode workers
  are ranked by the length of their step with the newcomer in the batch. What a decode worker holds of the prefix
  needs no transfer and no KV of its own, so a holder wins as long as its batch is not larger by as much.

Which kind comes first is what the heatmap says of the uncached prompt and the expected answer. It is measured with
nothing cached and both sides equally busy [ours]: where one of them owes more prefill now, or holds less of the
prompt, its time is scaled by what that costs. If there is no room in the better kind, the other one takes the
request.

A worker with one role serves whole requests normally. So it does where the other side of the pair is down, for
requests that cannot be shared (several sequences, for one: the KV that a prefill hands over can be fetched once
only), and for `never`.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple

from policies.estimates.heatmap import EXPLORED, LearnedHeatmap
from policies.events import Event, Left, Placed
from policies.fleet.speed import Profile
from policies.model import Matches, Outcome, Question, RequestView, Stage, WorkerFacts, WorkerView, reserve
from policies.placements.kit.draw import draw
from policies.value import value

Disaggregate = Literal["heatmap", "printed", "always", "never"]
"""heatmap: as the map says of each request. printed: as the map was measured, by the length of the whole prompt,
whatever is cached, owed or learned (DeepServe, arXiv 2501.14417). always: a pair while one has room. never: roles
are ignored."""


class Option(NamedTuple):
    """One kind in which a request may run."""

    workers: Sequence[WorkerView]
    """For the placement to rank: they serve whole requests, or with `decoders` only prompts."""
    decoders: Sequence[WorkerView] = ()
    """Decode workers, best first; empty for a whole request on one worker."""


class _Kinds(NamedTuple):
    """Workers by what they do."""

    colocated: list[WorkerView]
    prefill: list[WorkerView]
    decode: list[WorkerView]

    @property
    def pairs(self) -> bool:
        return bool(self.prefill and self.decode)


@value
class _Start:
    """When a request began to run, and how much of its prompt had to be computed."""

    at: float
    extend_tokens: int
    pair: bool


class Disaggregation:
    """The choice of the kind of worker, and what completion times teach the heatmap about it."""

    hears: ClassVar[frozenset[type[Event]]] = frozenset({Placed, Left})

    def __init__(self, heatmap: LearnedHeatmap, seed: int, disaggregate: Disaggregate = "heatmap") -> None:
        """`seed` decides which requests explore undecided cells of the map."""
        self._heatmap = heatmap
        self._disaggregate = disaggregate
        self._seed = seed
        self._roles = False
        """Workers with one role have been seen."""
        self._comparable = False
        """The fleet has both kinds, so that completion times say something about either."""
        self._running: dict[str, _Start] = {}

    def options(self, question: Question) -> list[Option]:
        """The kinds in which the request may run, the better one first; never none. Commits nothing."""
        request, workers = question.request, question.workers
        for worker in workers:
            if len(worker.facts.stages) == 1:
                break
        else:
            return [Option(workers)]
        self._roles = True
        kinds = _split(workers)
        self._comparable = bool(kinds.colocated) and kinds.pairs
        if self._disaggregate == "never" or not kinds.pairs:
            return [Option(workers)]
        if not request.divisible:
            side = kinds.prefill if request.max_output_tokens == 1 else kinds.decode  # a token is all prefill
            return [Option(kinds.colocated or side)]
        pair = Option(kinds.prefill, _by_step(request, question.matches, kinds.decode))
        if not kinds.colocated:
            return [pair]
        colocated = Option(kinds.colocated)
        return [pair, colocated] if self._pair_first(request, question.matches, kinds) else [colocated, pair]

    def on(self, event: Placed | Left) -> None:
        """Learn from how long requests took, where the fleet has both kinds."""
        if not self._roles:
            return
        request = event.request
        if isinstance(event, Placed):
            if self._comparable and request.divisible:
                pair = event.placement.prefill is not None
                self._running[request.id] = _Start(event.now, event.extend_tokens, pair)
            return
        start, usage = self._running.pop(request.id, None), event.usage
        if start is not None and event.outcome is Outcome.COMPLETED and usage is not None and usage.output_tokens:
            self._heatmap.record(
                start.extend_tokens, usage.output_tokens, event.now - start.at, disaggregated=start.pair
            )

    def _pair_first(self, request: RequestView, matches: Matches, kinds: _Kinds) -> bool:
        if self._disaggregate == "always":
            return True
        if self._disaggregate == "printed":
            return self._heatmap.measured.gain(request.input_tokens, request.expected_output_tokens) > 0
        held = max(matches.get(view.id, 0) for view in (*kinds.colocated, *kinds.prefill))
        prefill, answer = max(1, request.input_tokens - held), request.expected_output_tokens
        advised = self._gain(request, matches, kinds, prefill) > 0
        if draw(request, self._seed) < EXPLORED * 2**64 and self._heatmap.undecided(prefill, answer):
            return not advised
        return advised

    def _gain(self, request: RequestView, matches: Matches, kinds: _Kinds, prefill: int) -> float:
        """The map's gain for so much prefill, times how much later (or sooner) the colocated workers would begin.

        One profile for all: how fast each worker has been is what the map says.
        """
        answer, profile = request.expected_output_tokens, kinds.colocated[0].profile
        decode_s = profile.decode_s(answer, 1, request.input_tokens)
        colocated_s, pair_s = (
            decode_s + min(_first_token_s(request, view, matches.get(view.id, 0), profile) for view in side)
            for side in (kinds.colocated, kinds.prefill)
        )
        return (1 + self._heatmap.gain(prefill, answer)) * colocated_s / pair_s - 1


def _by_step(request: RequestView, matches: Matches, workers: Sequence[WorkerView]) -> list[WorkerView]:
    """Decode workers by the length of their step with the request in the batch; stalled ones last."""
    return sorted(
        workers, key=lambda view: (view.stalled, _step_s(request, view, matches.get(view.id, 0)), view.id)
    )


def shortfall(facts: Sequence[WorkerFacts], disaggregate: Disaggregate, *, wants_pairs: bool) -> str | None:
    """What the fleet lacks of the roles that were asked for, and what happens instead; None if nothing.

    `wants_pairs`: the chosen policy is one that is about pairs. For a fleet as it is configured, not as it is up.
    """
    prefill, decode = (any(each.stages == {stage} for each in facts) for stage in (Stage.PREFILL, Stage.DECODE))
    colocated = any(len(each.stages) > 1 for each in facts)
    if disaggregate == "never" and (prefill or decode):
        return "`disaggregate: never`: roles are ignored, every worker serves whole requests"
    if prefill != decode:
        here, missing = ("prefill", "decode") if prefill else ("decode", "prefill")
        return f"there are workers for {here} only, but none for {missing}: they serve whole requests"
    if not prefill and disaggregate == "always":
        return (
            "`disaggregate: always`, but the fleet has no prefill and decode workers: every request is colocated"
        )
    if wants_pairs and not (prefill and colocated):
        kind = "prefill/decode pairs" if prefill else "colocated workers"
        return (
            "the placement chooses between colocated workers and prefill/decode pairs, but this fleet has only "
            f"{kind}: its other rules choose among them"
        )
    return None


def _split(workers: Sequence[WorkerView]) -> _Kinds:
    kinds = _Kinds([], [], [])
    for worker in workers:
        stages = worker.facts.stages
        if len(stages) > 1:
            kinds.colocated.append(worker)
        elif Stage.PREFILL in stages:
            kinds.prefill.append(worker)
        else:
            kinds.decode.append(worker)
    return kinds


def _first_token_s(request: RequestView, worker: WorkerView, matched: int, profile: Profile) -> float:
    """When it would be there: behind the prefill owed, after what is not cached of the prompt."""
    wait_s = profile.prefill_s(worker.prefill_owed) if worker.prefill_owed else 0.0
    return wait_s + profile.prefill_s(max(1, request.input_tokens - matched), matched)


def _step_s(request: RequestView, worker: WorkerView, matched: int) -> float:
    """A decode step of this worker with the request in its batch, everything at its expected length."""
    kv_tokens = worker.kv_reserved + request.input_tokens - matched + reserve(request)
    return worker.profile.step_s(worker.sequences + request.sequences, kv_tokens)
