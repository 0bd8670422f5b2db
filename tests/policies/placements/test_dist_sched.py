"""dist_sched: the longest prefix under an even load, the least load otherwise, and pairs by the heatmap."""

from dataclasses import replace

from views import chosen, request
from views import worker as view

from policies.catalog import placement_policies, queue_policies
from policies.estimates.heatmap import Heatmap, Layer, LearnedHeatmap
from policies.knowledge import Knowledge
from policies.model import Placement, PrefixKey, Reason, Stage, WorkerFacts
from policies.placements.dist_sched import DistSched, Settings
from policies.scheduler.scheduler import Scheduler


def worker(name, load_s):
    return replace(view(name), load_s=load_s)


def best(workers, matches=None, **settings):
    return chosen(DistSched(Settings(**settings)), workers, matches)


def test_under_an_even_load_the_longest_prefix_wins():
    workers = [worker("a", 0.1), worker("b", 0.25), worker("c", 0.2)]
    assert best(workers, {"a": 100, "b": 800, "c": 300}) == ("b", Reason.HIT)


def test_under_an_uneven_load_the_least_load_wins_whatever_another_worker_holds():
    workers = [worker("a", 0.1), worker("b", 0.4)]
    assert best(workers, {"b": 800}) == ("a", Reason.SPILL)
    assert best(workers) == ("a", Reason.LOAD)
    assert best(workers, {"a": 800}) == ("a", Reason.LOAD)


def test_the_load_is_even_up_to_a_difference_in_time_or_a_factor():
    matches = {"b": 800}
    assert best([worker("a", 0.0), worker("b", 0.2)], matches)[0] == "b"
    assert best([worker("a", 0.0), worker("b", 0.21)], matches)[0] == "a"
    assert best([worker("a", 2.0), worker("b", 3.0)], matches)[0] == "b"
    assert best([worker("a", 2.0), worker("b", 3.01)], matches)[0] == "a"
    assert best([worker("a", 0.0), worker("b", 0.9)], matches, balance_s=1.0)[0] == "b"
    assert best([worker("a", 1.0), worker("b", 3.0)], matches, balance_rel=3.0)[0] == "b"


def test_any_worker_counts_for_the_balance():
    assert best([worker("a", 0.1), worker("b", 0.2), worker("c", 9.0)], {"b": 800}) == ("a", Reason.SPILL)


def test_of_equal_matches_the_least_loaded_wins():
    workers = [worker("a", 0.2), worker("b", 0.1), worker("c", 0.15)]
    assert best(workers) == ("b", Reason.MISS)
    assert best(workers, {"a": 50, "c": 50}) == ("c", Reason.HIT)


def test_the_heatmap_comes_first():
    """The first line of the listing: a pair for long prompts with short answers, whatever holds the prompt."""
    gains = Layer(1.0, ((-0.5, -0.5), (0.5, -0.5)))
    knowledge = Knowledge(heatmap=LearnedHeatmap(Heatmap((100, 10_000), (0.01, 1.0), (gains,))))
    policies = queue_policies()["fcfs"], placement_policies()["dist_sched"]
    made = Scheduler(*(entry.build(None, knowledge) for entry in policies), knowledge=knowledge)
    sides = {"p": frozenset((Stage.PREFILL,)), "d": frozenset((Stage.DECODE,)), "c": frozenset(Stage)}
    for name in ("c1", "p1", "p2", "d1"):
        made.worker_joined(WorkerFacts(name, frozenset({"base"}), stages=sides[name[0]]), 0.0)
    prompt = bytes(10_000)
    for name, held in (("c1", 100), ("p2", 300)):
        knowledge.prefixes.release(knowledge.prefixes.insert(name, request(prompt=prompt[:held]), 0.0), 0.0)

    def placed(name, output):
        one = request(name, prompt=prompt, output=output)
        made.submit(replace(one, key=PrefixKey(prompt, 1, 1.0)), 0.0)
        [decision] = made.decisions(0.0)
        made.cancel(decision.ticket, 0.0)
        return decision.place.placement, decision.place.reason

    assert placed("short answer", 100) == (Placement("d1", "p2"), Reason.HIT)
    assert placed("long answer", 10_000)[0].prefill is None
