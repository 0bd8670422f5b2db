"""Any placement in a fleet with roles: which kind of worker, which two of them, and what the policy hears."""

import dataclasses
from random import Random

import pytest

from policies.estimates.heatmap import Heatmap, Layer, LearnedHeatmap
from policies.events import FirstToken, Left, Output, Placed, WorkerGone
from policies.fleet.capacity import Room
from policies.fleet.speed import Profile
from policies.knowledge import Knowledge
from policies.model import (
    Hold,
    Outcome,
    Place,
    Placement,
    PrefixKey,
    Reason,
    RequestView,
    Stage,
    Usage,
    WorkerFacts,
    WorkerView,
)
from policies.placements.least_loaded import LeastLoaded
from policies.placements.least_loaded import Settings as LeastLoadedSettings
from policies.scheduler.disaggregation import Pairs, shortfall

STAGES = {"c": frozenset(Stage), "p": frozenset((Stage.PREFILL,)), "d": frozenset((Stage.DECODE,))}
LONG_PROMPTS = ((-0.5, -0.5), (0.5, -0.5))
"""Disaggregate prompts of 10,000 tokens with answers of 1%."""


def room(*, prefill=True, decode=True, idle=False):
    return Room(
        idle=idle,
        prefill_idle=prefill,
        prefill_free=0,
        slots_free=8 if decode else 0,
        kv_free=None,
        expected_at=5.0,
        prefills=True,
        decodes=True,
    )


def worker(name, **more):
    """`c1` is colocated, `p1` is for prefill, `d1` for decode."""
    facts = WorkerFacts(name, frozenset({"base"}), STAGES[name[0]])
    fields = {"requests": 0, "sequences": 0, "prefill_owed": 0, "decode_tokens": 0, "kv_reserved": 0}
    fields |= {"room": room(), "profile": Profile(), "load_s": 0.0}
    return WorkerView(name, facts, **(fields | more))


FLEET = [worker(name) for name in ("c1", "c2", "p1", "p2", "d1", "d2")]


def request(name="r", tokens=10_000, output=100, **more):
    return RequestView(name, "anna", "base", PrefixKey(), tokens, output, 0.0, **more)


def heatmap(gains=LONG_PROMPTS):
    return LearnedHeatmap(Heatmap((100, 10_000), (0.01, 1.0), (Layer(1.0, gains),)))


class Spy:
    """The least loaded; remembers what it was asked and told."""

    def __init__(self):
        self.asked, self.heard = [], []
        self.answer = LeastLoaded(LeastLoadedSettings()).choose

    def choose(self, request, matches, workers, now):
        self.asked.append(([view.id for view in workers], dict(matches)))
        return self.answer(request, matches, workers, now)

    def on(self, event):
        self.heard.append(event)


def pairs(mode="heatmap", gains=LONG_PROMPTS, seed=0):
    spy = Spy()
    return Pairs(spy, Knowledge(heatmap=heatmap(gains), rng=Random(seed)), mode), spy


def chosen(policy, workers=FLEET, asked=None, matches=None):
    place = policy.choose(asked or request(), matches or {}, workers, 0.0)
    return place if place is None or isinstance(place, Hold) else (place.placement.prefill, place.placement.decode)


# -- which kind


def test_without_roles_the_policy_is_asked_with_what_came():
    policy, spy = pairs()
    workers = FLEET[:2]
    policy.choose(request(), matches := {"c1": 5, "gone": 7}, workers, 0.0)
    assert spy.asked == [(["c1", "c2"], matches)]
    policy.on(event := Placed(request(), Placement("c1"), 0, 10, 0.0))
    assert spy.heard == [event]


def test_the_heatmap_says_which_kind():
    policy, spy = pairs()
    assert chosen(policy) == ("p1", "d1")
    assert chosen(policy, asked=request(output=10_000)) == (None, "c1")
    assert chosen(policy, asked=request(tokens=100, output=1)) == (None, "c1")
    assert [asked for asked, _ in spy.asked] == [["p1", "p2"], ["c1", "c2"], ["c1", "c2"]]


def test_the_policy_hears_of_the_matches_of_the_workers_that_it_is_asked_about():
    policy, spy = pairs()
    policy.choose(request(), {"c1": 3, "p2": 40, "d2": 500}, FLEET, 0.0)
    assert spy.asked == [(["p1", "p2"], {"p2": 40})]


def test_what_is_explained_is_what_the_policy_said_of_the_prefill_worker():
    policy, spy = pairs()
    spy.answer = lambda request, matches, workers, now: Place(Placement("p2"), Reason.HIT, 40, 1.5)
    place = policy.choose(request(), {"p2": 40}, FLEET, 0.0)
    assert place == Place(Placement("d1", "p2"), Reason.HIT, 40, 1.5)


def test_always_and_never():
    short = request(tokens=100, output=100)
    assert chosen(pairs("always")[0], asked=short) == ("p1", "d1")
    policy, spy = pairs("never")
    assert chosen(policy) == (None, "c1")
    assert spy.asked[0][0] == [view.id for view in FLEET]


def test_without_colocated_workers_every_request_goes_to_a_pair():
    assert chosen(pairs()[0], FLEET[2:], request(tokens=100, output=100)) == ("p1", "d1")


@pytest.mark.parametrize("missing", ["p", "d"])
def test_where_one_side_is_missing_the_rest_serve_whole_requests(missing):
    policy, spy = pairs()
    rest = [view for view in FLEET if view.id[0] != missing]
    assert chosen(policy, rest) == (None, "c1")
    assert spy.asked[0][0] == [view.id for view in rest]
    alone = [view for view in rest if view.id[0] != "c"]
    assert chosen(policy, alone) == (None, alone[0].id)


def test_a_side_without_room_is_not_a_side_that_is_missing():
    policy, spy = pairs()
    policy.choose_among(lambda _: FLEET)
    assert chosen(policy, [view for view in FLEET if view.id[0] == "p"]) is None
    assert chosen(policy, [view for view in FLEET if view.id[0] == "d"]) is None
    assert spy.asked == []
    assert chosen(policy, [view for view in FLEET if view.id[0] in "cp"]) == (None, "c1")
    assert spy.asked == [(["c1", "c2"], {})]


@pytest.mark.parametrize("fields", [{"sequences": 2}, {"whole": True}])
def test_what_cannot_be_shared_is_never_divided(fields):
    several = request(**fields)
    policy, spy = pairs()
    assert chosen(policy, asked=several) == (None, "c1")
    assert spy.asked[0][0] == ["c1", "c2"]
    assert chosen(policy, FLEET[2:], several) == (None, "d1")
    policy.choose_among(lambda _: FLEET)
    assert chosen(policy, FLEET[2:], several) is None


def test_if_the_better_kind_is_full_the_other_one_takes_the_request():
    policy, _ = pairs()
    full = room(prefill=False, decode=False)
    no_prefill = [dataclasses.replace(view, room=full) if view.id[0] == "p" else view for view in FLEET]
    no_decode = [dataclasses.replace(view, room=full) if view.id[0] == "d" else view for view in FLEET]
    busy = [dataclasses.replace(view, room=full) if view.id[0] == "c" else view for view in FLEET]
    assert chosen(policy, no_prefill) == chosen(policy, no_decode) == (None, "c1")
    assert chosen(policy, busy, request(tokens=100, output=100)) == ("p1", "d1")
    assert chosen(policy, [dataclasses.replace(view, room=full) for view in FLEET]) is None


def test_a_policy_that_would_rather_wait_in_the_better_kind_does():
    policy, spy = pairs()
    spy.answer = lambda request, matches, workers, now: Hold("p1", 3.0)
    assert chosen(policy) == Hold("p1", 3.0)


def test_a_prefill_worker_needs_room_for_the_prompt_only():
    policy, _ = pairs()
    no_slot = room(decode=False)
    workers = [dataclasses.replace(view, room=no_slot) if view.id[0] == "p" else view for view in FLEET]
    assert chosen(policy, workers) == ("p1", "d1")


def test_a_decode_worker_needs_no_room_for_the_prompt():
    policy, _ = pairs()
    no_window = room(prefill=False)
    workers = [dataclasses.replace(view, room=no_window) if view.id[0] == "d" else view for view in FLEET]
    assert chosen(policy, workers) == ("p1", "d1")


def test_what_each_kind_would_have_to_compute_counts():
    """Colocated workers hold the whole prompt: there is next to nothing to compute there, so no pair."""
    policy, _ = pairs()
    assert chosen(policy, matches={"c1": 9_990}) == (None, "c1")
    policy, _ = pairs(gains=((-0.3, -0.3), (-0.3, -0.3)))
    assert chosen(policy) == (None, "c1")
    assert chosen(policy, matches={"p1": 9_990}, asked=request(tokens=100_000, output=10)) == (None, "c1")
    assert chosen(policy, matches={"p1": 99_990}, asked=request(tokens=100_000, output=10)) == ("p1", "d1")


def test_prefill_that_a_side_owes_counts_against_it():
    policy, _ = pairs()
    busy = [worker("p1", prefill_owed=60_000), worker("p2", prefill_owed=60_000)]
    assert chosen(policy, [*FLEET[:2], *busy, *FLEET[4:]]) == (None, "c1")
    assert chosen(policy, [*FLEET[:2], busy[0], *FLEET[3:]])[0] is not None
    policy, _ = pairs(gains=((-0.3, -0.3), (-0.3, -0.3)))
    assert chosen(policy, [worker("c1", prefill_owed=60_000), *FLEET[2:]])[0] is not None


# -- which decode worker


def test_the_decode_worker_with_the_shortest_step_answers():
    policy, _ = pairs()
    workers = [*FLEET[:4], worker("d1", sequences=20, kv_reserved=200_000), worker("d2", sequences=5)]
    assert chosen(policy, workers) == ("p1", "d2")


def test_a_decode_worker_that_holds_the_prompt_wins_until_its_batch_is_larger_by_as_much():
    policy, _ = pairs()
    ahead = [*FLEET[:5], worker("d2", kv_reserved=9_000)]
    assert chosen(policy, ahead, matches={"d2": 9_990}) == ("p1", "d2")
    assert chosen(policy, ahead) == ("p1", "d1")
    assert chosen(policy, [*FLEET[:5], worker("d2", kv_reserved=11_000)], matches={"d2": 9_990}) == ("p1", "d1")


def test_a_stalled_decode_worker_answers_only_if_there_is_no_other():
    policy, _ = pairs()
    assert chosen(policy, [*FLEET[:4], worker("d1", stalled=True), worker("d2", sequences=50)]) == ("p1", "d2")
    assert chosen(policy, [*FLEET[:4], worker("d1", stalled=True)]) == ("p1", "d1")


# -- what the policy hears, and what is learned


def run(policy, asked, pair, seconds, output=100):
    placement = Placement("d1", "p1") if pair else Placement("c1")
    policy.choose(asked, {}, FLEET, 0.0)
    policy.on(Placed(asked, placement, 0, asked.input_tokens, 10.0))
    policy.on(Left(asked, placement, Outcome.COMPLETED, Usage(asked.input_tokens, output), 10.0 + seconds))


def test_the_policy_hears_of_a_pair_as_of_the_worker_that_it_chose():
    policy, spy = pairs()
    policy.choose(request(), {}, FLEET, 0.0)
    pair = Placement("d1", "p2")
    policy.on(Placed(request(), pair, 0, 10, 0.0))
    policy.on(FirstToken(request(), pair, 0.1))
    policy.on(Output(request(), pair, 5, 0.2))
    policy.on(Left(request(), pair, Outcome.COMPLETED, None, 0.3))
    assert [event.placement for event in spy.heard] == [Placement("p2")] * 4
    policy.on(gone := WorkerGone("p2", 0.4))
    policy.on(left := Left(request(), None, Outcome.CANCELLED, None, 0.3))
    assert spy.heard[-2:] == [gone, left]


def test_what_requests_take_turns_the_map():
    policy, _ = pairs()
    assert chosen(policy) == ("p1", "d1")
    for number in range(60):
        run(policy, request(str(number)), pair=number % 2 == 0, seconds=2.0 if number % 2 == 0 else 0.5)
    assert chosen(policy) == (None, "c1")


def test_only_answers_that_came_to_their_end_teach():
    policy, _ = pairs()
    knowledge = policy._heatmap
    for number, outcome in enumerate((Outcome.CANCELLED, Outcome.FAILED, None)):
        asked = request(str(number))
        policy.choose(asked, {}, FLEET, 0.0)
        policy.on(Placed(asked, Placement("c1"), 0, 10_000, 1.0))
        policy.on(Left(asked, Placement("c1"), outcome, Usage(10_000, 50), 2.0))
    assert not knowledge.evidence
    run(policy, request("n", sequences=2), pair=False, seconds=1.0)
    assert not knowledge.evidence
    run(policy, request("whole"), pair=False, seconds=1.0)
    assert knowledge.evidence


def test_at_most_two_percent_try_the_side_that_the_map_advises_against_and_asking_twice_changes_nothing():
    policy, _ = pairs()
    asked = [request(f"request-{number}") for number in range(3000)]
    first = [chosen(policy, asked=each) for each in asked]
    assert first == [chosen(policy, asked=each) for each in asked]
    against = first.count((None, "c1"))
    assert 0 < against <= 0.03 * len(asked)
    assert against + first.count(("p1", "d1")) == len(asked)


def test_a_decided_cell_is_not_explored():
    policy, _ = pairs()
    for number in range(60):
        run(policy, request(f"t{number}"), pair=number % 2 == 0, seconds=0.5 if number % 2 == 0 else 2.0)
    assert all(chosen(policy, asked=request(f"request-{n}")) == ("p1", "d1") for n in range(1000))


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
