"""dist_sched: the longest prefix under an even load, the least load otherwise, and pairs by the heatmap."""

from policies.catalog import placement_policies
from policies.estimates.heatmap import Heatmap, Layer, LearnedHeatmap
from policies.fleet.capacity import Room
from policies.fleet.speed import Profile
from policies.knowledge import Knowledge
from policies.model import Placement, PrefixKey, Reason, RequestView, Stage, WorkerFacts, WorkerView
from policies.placements.dist_sched import DistSched, Settings
from policies.scheduler.disaggregation import Pairs

OPEN = Room(idle=False, prefill_idle=True, prefill_free=4000, slots_free=None, kv_free=None, expected_at=0.0)
FULL = Room(idle=False, prefill_idle=False, prefill_free=0, slots_free=0, kv_free=0, expected_at=9.0)


def worker(name, load_s, *, room=OPEN, stages=frozenset(Stage)):
    return WorkerView(name, WorkerFacts(name, frozenset({"base"}), stages), 0, 0, 0, 0, 0, room, Profile(), load_s)


def request(tokens=1000, output=100):
    return RequestView("r", "anna", "base", PrefixKey(), tokens, output, 0.0)


def chosen(workers, matches=None, asked=None, **settings):
    place = DistSched(Settings(**settings)).choose(asked or request(), matches or {}, workers, 0.0)
    return None if place is None else (place.placement.decode, place.reason, place.matched_tokens)


def test_under_an_even_load_the_longest_prefix_wins():
    workers = [worker("a", 0.1), worker("b", 0.25), worker("c", 0.2)]
    assert chosen(workers, {"a": 100, "b": 800, "c": 300}) == ("b", Reason.HIT, 800)


def test_under_an_uneven_load_the_least_load_wins_whoever_holds_the_prefix():
    workers = [worker("a", 0.1), worker("b", 0.4)]
    assert chosen(workers, {"b": 800}) == ("a", Reason.SPILL, 0)
    assert chosen(workers) == ("a", Reason.LOAD, 0)
    assert chosen(workers, {"a": 800}) == ("a", Reason.LOAD, 800)


def test_the_load_is_even_up_to_a_difference_in_time_or_a_factor():
    matches = {"b": 800}
    assert chosen([worker("a", 0.0), worker("b", 0.2)], matches)[0] == "b"
    assert chosen([worker("a", 0.0), worker("b", 0.21)], matches)[0] == "a"
    assert chosen([worker("a", 2.0), worker("b", 3.0)], matches)[0] == "b"
    assert chosen([worker("a", 2.0), worker("b", 3.01)], matches)[0] == "a"
    assert chosen([worker("a", 0.0), worker("b", 0.9)], matches, balance_s=1.0)[0] == "b"
    assert chosen([worker("a", 1.0), worker("b", 3.0)], matches, balance_rel=3.0)[0] == "b"


def test_a_full_worker_counts_for_the_balance_but_is_not_chosen():
    assert chosen([worker("a", 0.1), worker("b", 0.2, room=FULL)], {"b": 800}) == ("a", Reason.MISS, 0)
    uneven = [worker("a", 0.1), worker("b", 0.2), worker("c", 9.0, room=FULL)]
    assert chosen(uneven, {"b": 800}) == ("a", Reason.SPILL, 0)
    assert chosen([worker("a", 0.1, room=FULL)]) is None


def test_of_equal_matches_the_least_loaded_wins():
    workers = [worker("a", 0.2), worker("b", 0.1), worker("c", 0.15)]
    assert chosen(workers) == ("b", Reason.MISS, 0)
    assert chosen(workers, {"a": 50, "c": 50}) == ("c", Reason.HIT, 50)


def test_the_heatmap_comes_first():
    """The first line of the listing: a pair for long prompts with short answers, whoever holds the prompt."""
    gains = Layer(1.0, ((-0.5, -0.5), (0.5, -0.5)))
    knowledge = Knowledge(heatmap=LearnedHeatmap(Heatmap((100, 10_000), (0.01, 1.0), (gains,))))
    policy = Pairs(placement_policies()["dist_sched"].build(None, knowledge), knowledge)
    sides = {"p": frozenset((Stage.PREFILL,)), "d": frozenset((Stage.DECODE,)), "c": frozenset(Stage)}
    workers = [worker(name, 0.0, stages=sides[name[0]]) for name in ("c1", "p1", "p2", "d1")]
    place = policy.choose(request(10_000, 100), {"c1": 100, "p2": 300}, workers, 0.0)
    assert (place.placement, place.reason, place.matched_tokens) == (Placement("d1", "p2"), Reason.HIT, 300)
    place = policy.choose(request(10_000, 10_000), {"c1": 100, "p2": 300}, workers, 0.0)
    assert (place.placement, place.reason, place.matched_tokens) == (Placement("c1"), Reason.HIT, 100)
