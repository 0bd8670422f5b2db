"""Workers that come and go, as they are written and as they are replayed."""

import pytest

from policies.model import AttemptFailure
from router.lab import driver as driver_module
from router.lab.driver import replay
from router.lab.fleet_changes import FleetChange, parse_changes
from router.lab.setup import SetupError, make_setup
from router.lab.workload import Request, Workload


def traffic(*requests):
    return Workload("hand-made", 16, requests, {"a": 1.0})


def request(at=0.0, output=100, tokens=160, **rest):
    return Request(at, "a", b"", tokens, output, **rest)


def test_changes_are_read_in_the_order_of_their_times():
    assert parse_changes("lose@9.5:worker-2, join@3:decode,drain@4:worker-0", 2) == (
        FleetChange(3.0, "join", 2, "decode"),
        FleetChange(4.0, "drain", 0),
        FleetChange(9.5, "lose", 2),
    )
    assert parse_changes("", 2) == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("explode@3:worker-0", "expected forms such as join@30"),
        ("join@soon", "expected forms"),
        ("join@1.2.3", "expected forms"),
        ("drain@3", "expected forms"),
        ("drain@3:worker-2", "no worker-2 at 3 s"),
        ("drain@3:worker-0,lose@4:worker-0", "no worker-0 at 4 s"),
        ("join@5,lose@4:worker-2", "no worker-2 at 4 s"),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_words(text, words):
    with pytest.raises(SetupError, match=words):
        make_setup(workers=2, changes=text)


def test_a_worker_that_joins_takes_work_from_then_on():
    many = traffic(*(request(0.01 * n, tokens=8000) for n in range(100)))
    alone = replay(many, make_setup(workers=1))
    joined = replay(many, make_setup(workers=1, changes="join@2"))
    assert [worker.requests > 0 for worker in joined.workers] == [True, True]
    assert joined.results[-1].ended < 0.8 * alone.results[-1].ended


def test_a_worker_that_drains_finishes_what_it_runs_and_gets_nothing_more():
    run = replay(
        traffic(request(output=500), *(request(at=1.0 + n / 10) for n in range(10))),
        make_setup(placement="round_robin", workers=2, changes="drain@0.5:worker-0"),
    )
    assert all(result.completed and result.attempts == 1 for result in run.results)
    assert [worker.requests for worker in run.workers] == [1, 10]
    assert run.results[0].ended > 1.0


def test_a_lost_worker_ends_answers_that_have_begun_and_moves_the_others():
    """One answer is streaming, one is not streamed, one is still in its prefill when their worker dies."""
    run = replay(
        traffic(
            request(output=500),
            request(output=500, streams=False),
            request(at=0.99, tokens=30_000, output=5),
            request(at=4.0),
        ),
        make_setup(placement="round_robin", binding="early", workers=1, changes="join@0.5,lose@1:worker-0"),
    )
    seen, whole, prefilling, later = run.results
    assert (seen.failed, seen.ended, seen.completed) == ("worker-0 was lost", 1.0, False)
    assert whole.completed
    assert whole.attempts == 2
    assert prefilling.completed
    assert later.completed


def test_requests_sent_to_a_dead_worker_before_its_death_is_known_are_tried_elsewhere(monkeypatch):
    failures = []
    original = driver_module.make_scheduler

    def watched(*arguments):
        scheduler = original(*arguments)
        failed = scheduler.attempt_failed
        monkeypatch.setattr(
            scheduler, "attempt_failed", lambda *event: (failures.append(event[1:3]), failed(*event))[1]
        )
        return scheduler

    monkeypatch.setattr(driver_module, "make_scheduler", watched)
    run = replay(
        traffic(*(request(at=1.1 + n / 10, output=2) for n in range(8))),
        make_setup(placement="round_robin", workers=2, changes="lose@1:worker-0"),
    )
    assert all(result.completed for result in run.results)
    assert ("worker-0", AttemptFailure.CONNECT) in failures
    assert sum(result.attempts - 1 for result in run.results) == len(failures)


def test_when_the_last_worker_has_gone_what_waits_is_rejected():
    run = replay(traffic(request(output=2000), request(at=5.0)), make_setup(workers=1, changes="lose@1:worker-0"))
    assert run.results[0].failed is not None
    assert run.results[1].rejected == "no_worker"


@pytest.mark.parametrize(
    "change", ["lose@0.3:worker-0", "lose@0.3:worker-1", "drain@0.3:worker-0,join@0.4:prefill"]
)
def test_pairs_lose_either_worker_and_nothing_is_left_behind(monkeypatch, change):
    drivers = []

    class Watched(driver_module._Driver):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            drivers.append(self)

    monkeypatch.setattr(driver_module, "_Driver", Watched)
    setup = make_setup(
        placement="round_robin",
        roles="1xprefill,1xdecode,2xmixed",
        changes=change,
        settings={"disaggregate": "always"},
    )
    run = replay(traffic(*(request(n / 50, tokens=4000) for n in range(60))), setup)
    assert all(result.completed or result.failed for result in run.results)
    (driver,) = drivers
    for worker in driver.workers:
        if not worker.lost:
            assert (len(worker.attempts), worker.engine.held, worker.engine.kv_blocks_used) == (0, 0, 0)
    views = driver._scheduler.snapshot().workers
    assert all((view.requests, view.kv_reserved) == (0, 0) for view in views)
