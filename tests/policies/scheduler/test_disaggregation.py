"""In a fleet with roles: in which kinds a request may run, the better one first, and which two workers it gets."""

from dataclasses import replace

import pytest

from policies.estimates.heatmap import Heatmap, Layer, LearnedHeatmap
from policies.events import Left, Placed
from policies.fleet.capacity import Room
from policies.fleet.fleet import Fleet
from policies.fleet.speed import Profile
from policies.model import (
    Outcome,
    Placement,
    PrefixKey,
    Question,
    RequestView,
    Stage,
    Usage,
    WorkerFacts,
    WorkerView,
)
from policies.orders.fcfs import Fcfs
from policies.orders.fcfs import Settings as FcfsSettings
from policies.placements.kit.ranking import by_cost
from policies.prefixes.index import Prefixes
from policies.protocol import PlacementPolicy
from policies.scheduler.disaggregation import Disaggregation, shortfall
from policies.scheduler.matching import Matcher
from policies.scheduler.settings import SchedulerSettings

STAGES = {"c": frozenset(Stage), "p": frozenset((Stage.PREFILL,)), "d": frozenset((Stage.DECODE,))}
LONG_PROMPTS = ((-0.5, -0.5), (0.5, -0.5))
"""Disaggregate prompts of 10,000 tokens with answers of 1%."""


def room(*, prefill=True, decode=True):
    return Room(
        idle=False,
        prefill_idle=prefill,
        prefill_free=0,
        slots_free=8 if decode else 0,
        kv_free=None,
        prefill_due=5.0,
    )


FULL = room(prefill=False, decode=False)


def worker(name, **more):
    """`c1` is colocated, `p1` is for prefill, `d1` for decode."""
    facts = WorkerFacts(name, frozenset({"base"}), STAGES[name[0]])
    fields = {"requests": 0, "sequences": 0, "prefill_owed": 0, "decode_tokens": 0, "kv_reserved": 0}
    fields |= {"room": room(), "profile": Profile(), "load_s": 0.0, "prefill_due": 0.0}
    sides = {"prefills": name[0] != "d", "decodes": name[0] != "p"}
    view = WorkerView(name, facts, **(fields | more))
    return replace(view, room=replace(view.room, **sides))


FLEET = [worker(name) for name in ("c1", "c2", "p1", "p2", "d1", "d2")]


def request(name="r", tokens=10_000, output=100, **more):
    return RequestView(name, "anna", "base", PrefixKey(), tokens, output, 0.0, **more)


def heatmap(gains=LONG_PROMPTS):
    return LearnedHeatmap(Heatmap((100, 10_000), (0.01, 1.0), (Layer(1.0, gains),)))


def kinds(mode="heatmap", gains=LONG_PROMPTS, seed=0):
    return Disaggregation(heatmap(gains), seed, mode)


def with_room(other, *names):
    """The fleet; these workers have another room."""
    return [worker(view.id, room=other) if view.id in names else view for view in FLEET]


def without_room(*sides):
    return with_room(FULL, *[view.id for view in FLEET if view.id[0] in sides])


def options(made, workers=FLEET, asked=None, matches=None):
    """The names of the workers of each kind, decode workers apart."""
    found = made.options(Question(asked or request(), matches or {}, workers, 0.0))
    return [tuple([view.id for view in side] for side in option) for option in found]


def first(made, workers=FLEET, asked=None, matches=None):
    """The kind that comes first: the first of its workers, and of its decode workers."""
    ranked, decoders = options(made, workers, asked, matches)[0]
    return ranked[0], decoders[0] if decoders else None


# -- which kind


def test_without_roles_there_is_one_kind():
    assert options(kinds(), FLEET[:2]) == [(["c1", "c2"], [])]


def test_the_heatmap_says_which_kind_comes_first():
    assert options(kinds()) == [(["p1", "p2"], ["d1", "d2"]), (["c1", "c2"], [])]
    assert options(kinds(), asked=request(output=10_000))[0] == (["c1", "c2"], [])
    assert options(kinds(), asked=request(tokens=100, output=1))[0] == (["c1", "c2"], [])


def test_always_and_never():
    short = request(tokens=100, output=100)
    assert first(kinds("always"), asked=short) == ("p1", "d1")
    assert options(kinds("never")) == [([view.id for view in FLEET], [])]


def test_printed_is_what_was_measured_whatever_is_cached_owed_or_learned():
    short, long = request(tokens=5_000, output=50), request()
    made, busy = kinds("printed"), [worker("c1"), worker("p1", prefill_owed=10**6), worker("d1")]
    assert first(made, busy, long, {"c1": 9_900}) == ("p1", "d1")
    assert first(kinds(), busy, long, {"c1": 9_900}) == ("c1", None)
    for _ in range(200):
        made._heatmap.record(10_000, 100, 1.0, disaggregated=False)
        made._heatmap.record(10_000, 100, 9.0, disaggregated=True)
    assert first(made, asked=long) == ("p1", "d1")
    asked = [replace(short, id=str(number)) for number in range(300)]
    assert len({first(kinds("printed", ((0.01, 0.01), (0.01, 0.01))), asked=one) for one in asked}) == 1


def test_without_colocated_workers_every_request_goes_to_a_pair():
    assert options(kinds(), FLEET[2:], request(tokens=100, output=100)) == [(["p1", "p2"], ["d1", "d2"])]


@pytest.mark.parametrize("missing", ["p", "d"])
def test_where_one_side_is_missing_the_rest_serve_whole_requests(missing):
    rest = [view for view in FLEET if view.id[0] != missing]
    assert options(kinds(), rest) == [([view.id for view in rest], [])]
    alone = [view for view in rest if view.id[0] != "c"]
    assert options(kinds(), alone) == [([view.id for view in alone], [])]


def test_a_side_without_room_is_not_a_side_that_is_missing():
    assert options(kinds(), without_room("p", "d")) == options(kinds())


@pytest.mark.parametrize("fields", [{"sequences": 2}, {"whole": True}])
def test_what_cannot_be_shared_is_never_divided(fields):
    several = request(**fields)
    assert options(kinds(), asked=several) == [(["c1", "c2"], [])]
    assert options(kinds(), FLEET[2:], several) == [(["d1", "d2"], [])]


def test_a_single_token_is_all_prefill():
    one = request(whole=True, max_output_tokens=1)
    assert options(kinds(), FLEET[2:], one) == [(["p1", "p2"], [])]


def test_what_each_kind_would_have_to_compute_counts():
    """Colocated workers hold the whole prompt: there is next to nothing to compute there, so no pair."""
    assert first(kinds(), matches={"c1": 9_990})[1] is None
    against = kinds(gains=((-0.3, -0.3), (-0.3, -0.3)))
    assert first(against)[1] is None
    assert first(against, matches={"p1": 9_990}, asked=request(tokens=100_000, output=10))[1] is None
    assert first(against, matches={"p1": 99_990}, asked=request(tokens=100_000, output=10)) == ("p1", "d1")


def test_prefill_that_a_side_owes_counts_against_it():
    busy = [worker("p1", prefill_owed=60_000), worker("p2", prefill_owed=60_000)]
    assert first(kinds(), [*FLEET[:2], *busy, *FLEET[4:]])[1] is None
    assert first(kinds(), [*FLEET[:2], busy[0], *FLEET[3:]])[1] is not None
    against = kinds(gains=((-0.3, -0.3), (-0.3, -0.3)))
    assert first(against, [worker("c1", prefill_owed=60_000), *FLEET[2:]])[1] is not None


# -- which decode worker


def decoder(workers, matches=None):
    return first(kinds(), workers, matches=matches)[1]


def test_the_decode_worker_with_the_shortest_step_answers():
    workers = [*FLEET[:4], worker("d1", sequences=20, kv_reserved=200_000), worker("d2", sequences=5)]
    assert decoder(workers) == "d2"


def test_a_decode_worker_that_holds_the_prompt_wins_until_its_batch_is_larger_by_as_much():
    ahead = [*FLEET[:5], worker("d2", kv_reserved=9_000)]
    assert decoder(ahead, {"d2": 9_990}) == "d2"
    assert decoder(ahead) == "d1"
    assert decoder([*FLEET[:5], worker("d2", kv_reserved=11_000)], {"d2": 9_990}) == "d1"


def test_a_stalled_decode_worker_answers_only_if_there_is_no_other():
    assert decoder([*FLEET[:4], worker("d1", stalled=True), worker("d2", sequences=50)]) == "d2"
    assert decoder([*FLEET[:4], worker("d1", stalled=True)]) == "d1"


# -- which two of them start: the matcher needs room on both sides


class ByPrompt(PlacementPolicy):
    """Longest match, then by name; remembers the workers and matches that it was asked about."""

    def __init__(self):
        self.asked = []

    def rank(self, question):
        self.asked.append([view.id for view in question.workers])
        return by_cost(question, lambda worker, matched: (-matched, int(worker.id[1:])))


def start(workers=FLEET, asked=None, matches=None, *, mode="heatmap", hold_s=0.0, policy=None):
    """Where a request starts: (prefill worker, decode worker), or None."""
    settings = SchedulerSettings(hold_s=hold_s)
    fleet, prefixes = Fleet(0.2, None), Prefixes()
    fleet.views = lambda: list(workers)
    fleet.eligible = lambda _: list(workers)
    prefixes.match = lambda _: matches or {}
    order = Fcfs(FcfsSettings(patience_s=1e9))
    made = Matcher(order, policy or ByPrompt(), fleet, prefixes, kinds(mode), settings=settings)
    for view in workers:
        fleet.update_facts(view.facts)
    one = asked or request()
    order.push(one)
    match = made.next({one.id: one}, 0.0)
    assert made.faults.last is None
    return None if match is None else (match.place.placement.prefill, match.place.placement.decode)


def test_a_pair_is_the_best_ranked_prefill_worker_and_the_best_decode_worker():
    assert start() == ("p1", "d1")
    assert start(matches={"p2": 40}) == ("p2", "d1")


def test_the_placement_is_asked_about_the_workers_of_one_kind_only():
    policy = ByPrompt()
    assert start(without_room("p"), policy=policy) == (None, "c1")
    assert policy.asked == [["p1", "p2"], ["c1", "c2"]]


def test_if_the_better_kind_is_full_the_other_one_takes_the_request():
    assert start(without_room("p")) == start(without_room("d")) == (None, "c1")
    assert start(without_room("c"), request(tokens=100, output=100)) == ("p1", "d1")
    assert start(without_room("c", "p", "d")) is None


def test_a_side_without_room_serves_no_whole_requests_for_want_of_the_other():
    assert start(without_room("p", "c")) is None
    assert start(without_room("d", "c")) is None


def test_a_request_waits_in_the_better_kind_rather_than_start_in_the_other_where_that_has_room():
    workers = with_room(FULL, "p1")
    assert start(workers, matches={"p1": 40}, hold_s=9.0) is None
    assert start(workers, matches={"p1": 40}) == ("p2", "d1")


def test_a_prefill_worker_needs_room_for_the_prompt_only():
    no_slot = with_room(room(decode=False), "p1", "p2")
    assert start(no_slot) == ("p1", "d1")


def test_a_decode_worker_needs_no_room_for_the_prompt():
    no_window = with_room(room(prefill=False), "d1", "d2")
    assert start(no_window) == ("p1", "d1")


def test_room_of_a_prefill_worker_beyond_the_budget_is_not_waited_for():
    """The other prefill worker takes the request."""
    workers = with_room(FULL, "p1")
    assert start(workers, matches={"p1": 40}, hold_s=4.9) == ("p2", "d1"), (
        "room is expected at 5.0, beyond the budget"
    )


# -- what is learned


def run(made, asked, pair, seconds, output=100):
    placement = Placement("d1", "p1") if pair else Placement("c1")
    options(made, asked=asked)
    made.on(Placed(asked, placement, 0, asked.input_tokens, 10.0))
    made.on(Left(asked, placement, Outcome.COMPLETED, Usage(asked.input_tokens, output), 10.0 + seconds))


def test_what_requests_take_turns_the_map():
    made = kinds()
    assert first(made) == ("p1", "d1")
    for number in range(60):
        run(made, request(str(number)), pair=number % 2 == 0, seconds=2.0 if number % 2 == 0 else 0.5)
    assert first(made) == ("c1", None)


def test_only_answers_that_came_to_their_end_teach():
    made = kinds()
    knowledge = made._heatmap
    for number, outcome in enumerate((Outcome.CANCELLED, Outcome.FAILED, None)):
        asked = request(str(number))
        options(made, asked=asked)
        made.on(Placed(asked, Placement("c1"), 0, 10_000, 1.0))
        made.on(Left(asked, Placement("c1"), outcome, Usage(10_000, 50), 2.0))
    assert not knowledge.evidence
    run(made, request("n", sequences=2), pair=False, seconds=1.0)
    assert not knowledge.evidence
    run(made, request("whole"), pair=False, seconds=1.0)
    assert knowledge.evidence
    assert not made._running


def test_at_most_two_percent_try_the_side_that_the_map_advises_against_and_asking_twice_changes_nothing():
    made = kinds()
    asked = [request(f"request-{number}") for number in range(3000)]
    once = [first(made, asked=each) for each in asked]
    assert once == [first(made, asked=each) for each in asked]
    against = once.count(("c1", None))
    assert 0 < against <= 0.03 * len(asked)
    assert against + once.count(("p1", "d1")) == len(asked)


def test_a_decided_cell_is_not_explored():
    made = kinds()
    for number in range(60):
        run(made, request(f"t{number}"), pair=number % 2 == 0, seconds=0.5 if number % 2 == 0 else 2.0)
    assert all(first(made, asked=request(f"request-{n}")) == ("p1", "d1") for n in range(1000))


# -- what a fleet lacks


def facts(*names):
    return [WorkerFacts(name, frozenset(), STAGES[name[0]]) for name in names]


@pytest.mark.parametrize(
    ("names", "mode", "wants_pairs", "says"),
    [
        ("c1 c2", "heatmap", False, None),
        ("c1 p1 d1", "heatmap", True, None),
        ("c1 p1 d1", "always", False, None),
        ("p1 d1", "heatmap", False, None),
        ("c1 c2", "heatmap", True, "only colocated workers"),
        ("p1 d1", "heatmap", True, "only prefill/decode pairs"),
        ("c1", "always", False, "every request is colocated"),
        ("c1 p1", "heatmap", False, "for prefill only, but none for decode: they serve whole requests"),
        ("d1", "always", True, "for decode only, but none for prefill: they serve whole requests"),
        ("c1 p1 d1", "never", True, "roles are ignored"),
        ("c1", "never", False, None),
    ],
)
def test_what_a_fleet_lacks_is_said_with_what_happens_instead(names, mode, wants_pairs, says):
    found = shortfall(facts(*names.split()), mode, wants_pairs=wants_pairs)
    assert (found is None) if says is None else (says in found)
