"""Combinations of policies side by side."""

import pytest

from router.config.yaml_lines import ConfigError
from router.lab.comparison import Source, combinations, compare, ordered
from router.lab.report import Targets
from router.lab.setup import SetupError, make_setup, parse_settings

SOURCE = Source("chat:requests=50", seed=2)


def comparable(entries):
    return [{**entry.report, "wall_s": 0} for entry in entries]


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
    assert alone[0].curves == together[0].curves
    assert heard == [1, 2]


def test_entries_are_sorted_with_the_best_first_and_those_without_a_value_last():
    entries = compare(SOURCE, [make_setup(workers=1), make_setup(workers=4)], targets=Targets())
    entries[0].report["ttft_s"]["mean"] = None
    assert [entry.report["workers"] for entry in ordered(entries, "ttft")] == [4, 1]
    rates = [entry.report["service_per_s"] for entry in ordered(entries, "service")]
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
