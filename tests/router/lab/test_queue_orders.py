"""The orders for little memory, in a lab where memory is little: all requests are answered, no order raises."""

import pytest

from policies.scheduler.matching import Faults
from router.lab.driver import replay
from router.lab.setup import make_setup
from router.lab.workloads.open_workload import open_workload

ORDERS = ["vtc", "shortest_first", "mc_sf", "sorted_f", "svf", "amax", "amin"]
TIGHT = {"judge": 8_000, "longqa": 40_000, "poisson": 8_000}
"""KV tokens per worker: a few requests at once."""


@pytest.mark.parametrize("order", ORDERS)
def test_with_little_memory_everybody_is_answered(order, monkeypatch):
    faults = []
    monkeypatch.setattr(Faults, "add", lambda _, fault: faults.append(fault))
    for name, kv_tokens in TIGHT.items():
        traffic = open_workload(f"{name}:rate=200,requests=30", seed=3)
        settings = {"engine.kv_tokens": kv_tokens, "queue_wait_s": 36_000}
        run = replay(traffic, make_setup(queue=order, workers=2, settings=settings))
        too_large = [r for r in traffic.requests if r.input_tokens + r.output_tokens > kv_tokens]
        assert sum(record.completed for record in run.results) == 30 - len(too_large) > 15
    assert faults == []
