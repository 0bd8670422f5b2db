"""Should this request run on one worker, or should one compute its prompt and another its answer?

A fleet may have workers for prefill only, for decode only, and *colocated* ones that do both. `Pairs` stands in
front of any placement policy and asks it about workers of one kind at a time, so that no policy knows of roles:

- colocated: the policy chooses among the colocated workers;
- a pair: the policy chooses among the prefill workers, whose caches and queues are what matters there; the decode
  worker is the one whose step is shortest with the newcomer in its batch. What it holds of the prefix needs no
  transfer and no KV of its own, so a holder wins as long as its batch is not the larger one by as much.

Which kind comes first is what the heatmap says of the uncached prompt and the expected answer. It is measured with
nothing cached and both sides equally busy [ours]: where one of them owes more prefill now, or holds less of the
prompt, its time is scaled by what that costs. If there is no room in the better kind, the other one takes the
request: nobody idles for a preference.

A worker with one role serves whole requests normally. So it does where the other side of the pair is down, for
requests that cannot be shared (several sequences, for one: the KV that a prefill hands over can be fetched once
only), and for `never`.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

from policies.estimates.heatmap import EXPLORED
from policies.events import Bound, Event, FirstToken, Left, Output, Placed
from policies.fleet.speed import Profile
from policies.knowledge import Knowledge
from policies.model import (
    Hold,
    Matches,
    Outcome,
    Place,
    Placement,
    RequestView,
    Stage,
    WorkerFacts,
    WorkerId,
    WorkerView,
    reserve,
)
from policies.placements.random_choice import draw
from policies.protocol import PlacementPolicy
from policies.scheduler.event_dispatch import heard
from policies.value import value

Disaggregate = Literal["heatmap", "always", "never"]
"""heatmap: as the map says of each request. always: a pair while one has room. never: roles are ignored."""

Able = Callable[[RequestView], Sequence[WorkerView]]
"""Who could serve a request, with room or without."""


@value
class PrefillView(WorkerView):
    """A prefill worker as a placement policy sees it: there is room if the prompt fits."""

    def admits(self, request: RequestView, matched_tokens: int) -> bool:
        return self.admits_prefill(request, matched_tokens)


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


class Pairs:
    """Any placement policy, over a fleet whose workers may have roles. Without roles it is that policy."""

    def __init__(
        self, inner: PlacementPolicy, knowledge: Knowledge, disaggregate: Disaggregate = "heatmap"
    ) -> None:
        self._inner = inner
        self.hears = heard(inner) | {Placed, Left}
        self._heatmap = knowledge.heatmap
        self._disaggregate = disaggregate
        self._seed = knowledge.rng.getrandbits(64)
        self._able: Able | None = None
        self._roles = False
        """Workers with one role have been seen."""
        self._comparable = False
        """The fleet has both kinds, so that what requests take says something about either."""
        self._views: dict[WorkerId, tuple[WorkerView, PrefillView]] = {}
        self._running: dict[str, _Start] = {}

    def choose_among(self, able: Able) -> None:
        """Who could serve a request: tells a side that is down from one that merely has no room."""
        self._able = able

    def choose(
        self, request: RequestView, matches: Matches, workers: Sequence[WorkerView], now: float
    ) -> Place | Hold | None:
        for worker in workers:
            if len(worker.facts.stages) == 1:
                break
        else:
            return self._inner.choose(request, matches, workers, now)
        self._roles = True
        kinds = _split(workers)
        fleet = kinds if all(kinds) or self._able is None else _split(self._able(request))
        self._comparable = bool(fleet.colocated) and fleet.pairs
        if self._disaggregate == "never" or not fleet.pairs:
            return self._alone(request, matches, workers, now)
        if not request.divisible:
            side = kinds.prefill if request.max_output_tokens == 1 else kinds.decode  # a token is all prefill
            return self._alone(request, matches, kinds.colocated if fleet.colocated else side, now)
        pair_first = not fleet.colocated or self._pair_first(request, matches, kinds)
        for ask in (self._pair, self._colocated) if pair_first else (self._colocated, self._pair):
            choice = ask(request, matches, kinds, now)
            if choice is not None:
                return choice
        return None

    def on(self, event: Event) -> None:
        """The wrapped policy hears of a pair as of the worker that it chose."""
        if self._roles and isinstance(event, Bound | Placed | FirstToken | Output | Left):
            self._learn(event)
            if event.placement is not None and event.placement.prefill is not None:
                event = replace(event, placement=Placement(event.placement.prefill))
        self._inner.on(event)

    # -- which kind

    def _pair_first(self, request: RequestView, matches: Matches, kinds: _Kinds) -> bool:
        if self._disaggregate == "always" or not all(kinds):
            return True
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

    # -- which workers

    def _colocated(self, request: RequestView, matches: Matches, kinds: _Kinds, now: float) -> Place | Hold | None:
        return self._alone(request, matches, kinds.colocated, now)

    def _alone(
        self, request: RequestView, matches: Matches, workers: Sequence[WorkerView], now: float
    ) -> Place | Hold | None:
        return self._inner.choose(request, _among(matches, workers), workers, now) if workers else None

    def _pair(self, request: RequestView, matches: Matches, kinds: _Kinds, now: float) -> Place | Hold | None:
        decoders = [view for view in kinds.decode if view.admits_decode(request, matches.get(view.id, 0))]
        if not decoders or not kinds.prefill:
            return None
        prefillers = [self._prefill_view(view) for view in kinds.prefill]
        choice = self._inner.choose(request, _among(matches, prefillers), prefillers, now)
        if not isinstance(choice, Place):
            return choice
        decoder = min(decoders, key=lambda view: (view.stalled, _step_s(request, view, matches.get(view.id, 0))))
        return replace(choice, placement=Placement(decoder.id, choice.placement.decode))

    def _prefill_view(self, view: WorkerView) -> PrefillView:
        known = self._views.get(view.id)
        if known is None or known[0] is not view:
            values = [getattr(view, name) for name in WorkerView.__match_args__]
            known = self._views[view.id] = view, PrefillView(*values)
        return known[1]

    # -- learning

    def _learn(self, event: Bound | Placed | FirstToken | Output | Left) -> None:
        request = event.request
        if isinstance(event, Placed) and self._comparable and request.divisible:
            pair = event.placement.prefill is not None
            self._running[request.id] = _Start(event.now, event.extend_tokens, pair)
        elif isinstance(event, Left):
            start = self._running.pop(request.id, None)
            usage = event.usage
            if (
                start is not None
                and event.outcome is Outcome.COMPLETED
                and usage is not None
                and usage.output_tokens
            ):
                self._heatmap.record(
                    start.extend_tokens, usage.output_tokens, event.now - start.at, disaggregated=start.pair
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


def _among(matches: Matches, workers: Sequence[WorkerView]) -> Matches:
    return {worker.id: matches[worker.id] for worker in workers if worker.id in matches}


def _first_token_s(request: RequestView, worker: WorkerView, matched: int, profile: Profile) -> float:
    """When it would be there: behind the prefill owed, after what is not cached of the prompt."""
    wait_s = profile.prefill_s(worker.prefill_owed) if worker.prefill_owed else 0.0
    return wait_s + profile.prefill_s(max(1, request.input_tokens - matched), matched)


def _step_s(request: RequestView, worker: WorkerView, matched: int) -> float:
    """A decode step of this worker with the request in its batch, everything at its expected length."""
    kv_tokens = worker.kv_reserved + request.input_tokens - matched + reserve(request)
    return worker.profile.step_s(worker.sequences + request.sequences, kv_tokens)
