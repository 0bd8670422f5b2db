"""Combinations of policies side by side."""

import multiprocessing
import os
import signal

import pytest

from router.config.yaml_lines import ConfigError
from router.lab.comparison import Source, best_of_others, combinations, compare, ordered
from router.lab.setup import SetupError, make_setup, parse_settings
from router.lab.workload import Targets

SOURCE = Source("chat:requests=50", seed=2)


def comparable(comparison):
    return [{**result.report, "wall_s": 0} for result in comparison.results]


def test_every_placement_meets_every_queue_and_binding():
    setups = combinations(["round_robin", "cache_aware"], ["fcfs"], ["late", "early"], settings={})
    assert [(s.placement, s.queue, s.binding) for s in setups] == [
        ("round_robin", "fcfs", "late"),
        ("round_robin", "fcfs", "early"),
        ("cache_aware", "fcfs", "late"),
        ("cache_aware", "fcfs", "early"),
    ]


def test_a_setting_goes_to_the_policies_that_have_it():
    setups = combinations(["round_robin", "cache_aware"], [None], [None], settings={"placement.match_ratio": 0.9})
    assert setups[1].config.policies.placement.settings.match_ratio == 0.9
    with pytest.raises(SetupError, match=r"no setting `placement.match_ratio`"):
        combinations(["round_robin"], [None], [None], settings={"placement.match_ratio": 0.9})


def test_processes_change_nothing_about_the_result():
    setups = combinations(["round_robin", "cache_aware"], [None], [None], settings={}, workers=2, seed=2)
    heard = []
    alone = compare(SOURCE, setups, targets=Targets(), progress=heard.append)
    together = compare(SOURCE, setups, targets=Targets(), jobs=2)
    assert comparable(alone) == comparable(together)
    assert alone.results[0].curves == together.results[0].curves
    assert heard == [1, 2]
    assert not alone.interrupted


@pytest.fixture
def interruptible():
    """Ctrl-C raises KeyboardInterrupt here, whatever tests before have made of the signal."""
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, old)


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_interrupted_comparison_keeps_what_is_finished(jobs, interruptible):
    def interrupt(finished):
        if finished == 2:
            os.kill(os.getpid(), signal.SIGINT)

    setups = [make_setup(workers=number) for number in (1, 2, 3, 4)]
    before = set(multiprocessing.active_children())
    comparison = compare(SOURCE, setups, targets=Targets(), jobs=jobs, progress=interrupt)
    assert comparison.interrupted
    assert 2 <= comparison.finished < comparison.total == 4
    assert len(comparison.results) == comparison.finished
    assert set(multiprocessing.active_children()) <= before


def test_several_seeds_are_one_result_with_mean_and_spread():
    one, other = (
        compare(Source("chat:requests=50", seed), [make_setup(workers=2)], targets=Targets()) for seed in (2, 3)
    )
    (both,) = compare(SOURCE, [make_setup(workers=2)], targets=Targets(), seeds=(2, 3)).results
    values = [comparison.results[0].report["ttft_s"]["mean"] for comparison in (one, other)]
    assert both.report["seeds"] == [2, 3]
    assert both.report["ttft_s"]["mean"] == pytest.approx(sum(values) / 2)
    assert both.report["spread"]["ttft_s"]["mean"] == [min(values), max(values)]
    assert values[0] != values[1]
    assert len(both.curves) == 2


def test_the_default_as_it_ships_is_judged_by_the_better_binding_of_the_others():
    def report(placement, binding, mean):
        times = {"mean": mean, "p99": 10 * mean}
        return {"placement": placement, "binding": binding, "ttft_s": times, "e2e_s": dict.fromkeys(times)}

    ours = [report("a", "late", 3.0), report("a", "early", 2.0)]
    reports = [*ours, report("b", "late", 4.0), report("b", "early", 1.0)]
    found = best_of_others(reports, "a", "late")
    assert {name: [each["binding"] for each in pair] for name, pair in found.items()} == {
        "TTFT mean": ["late", "early"],
        "TTFT p99": ["late", "early"],
    }
    assert found["TTFT mean"][1]["placement"] == "b"
    assert best_of_others(reports[1:], "a", "late")["TTFT mean"][0]["binding"] == "early"
    assert best_of_others(ours, "a", "late") == {}


def test_results_are_sorted_with_the_best_first_and_those_without_a_value_last():
    results = compare(SOURCE, [make_setup(workers=1), make_setup(workers=4)], targets=Targets()).results
    results[0].report["ttft_s"]["mean"] = None
    assert [result.report["workers"] for result in ordered(results, "ttft")] == [4, 1]
    rates = [result.report["steady"]["service_per_s"] for result in ordered(results, "service")]
    assert rates == sorted(rates, reverse=True)


def test_an_order_can_be_named_with_its_queue():
    setup = make_setup(queue="dlpm+svf", settings={"queue.quantum": 512})
    assert setup.queue == "dlpm+svf"
    assert (setup.config.policies.queue.settings.order, setup.config.policies.queue.settings.quantum) == (
        "svf",
        512,
    )
    with pytest.raises(ConfigError, match="order"):
        make_setup(queue="dlpm+fastest")


def test_settings_are_read_as_in_a_configuration_file():
    assert parse_settings(["a=1", "b.c = 0.5", "d=null", "e=true", "f=x=y"]) == {
        "a": 1,
        "b.c": 0.5,
        "d": None,
        "e": True,
        "f": "x=y",
    }
