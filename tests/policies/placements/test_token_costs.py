"""The rules that count tokens: LMetric's product and Dynamo's sum."""

import pytest
from views import first, named, request, worker

from policies.placements.kv_cost import KvCost
from policies.placements.kv_cost import Settings as KvCostSettings
from policies.placements.lmetric import LMetric
from policies.placements.lmetric import Settings as LMetricSettings


def test_lmetric_is_the_product_of_prefill_and_requests():
    policy, one = LMetric(LMetricSettings()), request(tokens=1000)
    fleet = [worker("a", requests=3, owed=200), worker("b", requests=2, owed=900)]
    best = first(policy, fleet, {"a": 700}, one)
    assert (best.worker.id, best.cost) == ("a", (300 + 200) * 3)
    assert first(policy, fleet, {}, one).cost == min(1200 * 3, 1900 * 2)


def test_lmetric_breaks_the_ties_of_idle_workers_by_prefill():
    policy = LMetric(LMetricSettings())
    assert named(policy, [worker("a"), worker("b")], {"b": 10}) == "b"


@pytest.mark.parametrize(("weight", "cost"), [(1.0, 200 + 1000 - 700), (0.5, 200 + 1000 - 350), (2.0, 0)])
def test_kv_cost_is_what_has_to_be_computed_and_held(weight, cost):
    policy = KvCost(KvCostSettings(overlap_weight=weight))
    assert first(policy, [worker("a", owed=200)], {"a": 700}, request(tokens=1000)).cost == cost


def test_kv_cost_breaks_ties_by_requests():
    assert named(KvCost(KvCostSettings()), [worker("a", requests=4), worker("b", requests=3)]) == "b"
