from dataclasses import replace

import pytest

from router.control.pair_compatibility import PairCompatibility
from workers.fleet.worker import Scrape, Worker, WorkerSpec

SCRAPE = Scrape(at=0.0, running=0, waiting=0, kv_usage=0.0, block_size=16, nixl=True)
P = Worker(WorkerSpec("http://p:8000"), scrape=SCRAPE)
D = Worker(WorkerSpec("http://d:8000"), scrape=SCRAPE)


def with_scrape(worker, **changes):
    return replace(worker, scrape=replace(SCRAPE, **changes))


def test_workers_with_nothing_between_them_fit():
    assert PairCompatibility().misfit(P, D, 0.0) is None
    assert PairCompatibility().misfit(replace(P, scrape=None), D, 0.0) is None
    assert PairCompatibility().misfit(with_scrape(P, block_size=None), D, 0.0) is None


@pytest.mark.parametrize(
    ("prefill", "decode", "why"),
    [
        (P, with_scrape(D, block_size=64), "their KV blocks have 16 and 64 tokens"),
        (P, with_scrape(D, nixl=False), "the first has the NIXL connector, the second has not"),
        (with_scrape(P, nixl=False), D, "the second has the NIXL connector, the first has not"),
    ],
)
def test_what_their_metrics_show_keeps_a_pair_apart(prefill, decode, why, caplog):
    handovers = PairCompatibility()
    assert [handovers.misfit(prefill, decode, float(now)) for now in range(9)] == [why] * 9
    assert len(caplog.records) == 1
    assert handovers.misfit(P, D, 9.0) is None


def test_a_pair_that_has_failed_is_tried_again_later_and_later():
    handovers, now, waits = PairCompatibility(), 0.0, []
    for _ in range(9):
        handovers.failed(P.id, D.id, "the worker answered 500", now)
        begun = now
        assert handovers.misfit(P, D, now) == "the worker answered 500"
        while handovers.misfit(P, D, now) is not None:
            now += 1.0
        waits.append(now - begun)
    assert waits == [10, 20, 40, 80, 160, 320, 600, 600, 600]
    handovers.worked(P.id, D.id)
    handovers.failed(P.id, D.id, "the worker answered 500", now)
    assert handovers.misfit(P, D, now + 10.0) is None


def test_requests_that_were_under_way_fail_as_one():
    handovers = PairCompatibility()
    for now in (0.0, 1.0, 2.0):
        handovers.failed(P.id, D.id, "x", now)
    assert handovers.misfit(P, D, 10.0) is None


def test_other_pairs_of_the_same_workers_go_on():
    handovers = PairCompatibility()
    handovers.failed(P.id, D.id, "x", 0.0)
    assert handovers.misfit(D, P, 0.0) is None
    assert handovers.misfit(P, P, 0.0) is None


def test_what_is_remembered_is_bounded():
    handovers = PairCompatibility()
    for number in range(3000):
        handovers.failed(P.id, f"http://d{number}:8000", "x", 0.0)
    assert len(handovers._failed) == 1000
    assert len(handovers._log_limit._said) <= 1024
