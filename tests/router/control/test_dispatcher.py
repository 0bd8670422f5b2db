import asyncio
import logging

import pytest

from policies.model import (
    AttemptFailure,
    Dispatch,
    Outcome,
    PrefixKey,
    Reject,
    RejectReason,
    RequestView,
    Stage,
    Usage,
    WorkerFacts,
)
from policies.orders.fcfs import Fcfs
from policies.orders.fcfs import Settings as FcfsSettings
from policies.protocol import PlacementPolicy
from policies.scheduler.scheduler import Scheduler
from router.config.schema import Config
from router.control import dispatcher as admission
from router.control.dispatcher import Pool
from router.control.scheduler_factory import make_scheduler


def worker(name, **more):
    return WorkerFacts(id=name, served_names=frozenset({"m"}), stages=frozenset(Stage), **{"slots": 1, **more})


def request(name, **more):
    loop = asyncio.get_running_loop()
    fields = {"client": "c", "served_name": "m", "key": PrefixKey(name.encode()), "input_tokens": 5}
    return RequestView(id=name, expected_output_tokens=5, arrived=loop.time(), streams=True, **fields, **more)


@pytest.fixture
async def pool():
    pools = []

    def make(*workers, **settings):
        config = Config.load(env={}, overrides={"limits": settings})
        pools.append(Pool("m", make_scheduler(config), asyncio.get_running_loop()))
        for facts in workers:
            pools[-1].joined(facts)
        return pools[-1]

    yield make
    for one in pools:
        one.close()


def at_rest(pool):
    snapshot = pool.scheduler.snapshot()
    loads = [(row.requests, row.sequences, row.prefill_owed, row.kv_reserved) for row in snapshot.workers]
    return not snapshot.queued and not snapshot.in_flight and not pool._admitted and set(loads) <= {(0, 0, 0, 0)}


async def test_on_an_idle_worker_nobody_waits(pool):
    one = pool(worker("a"))
    admitted = one.submit(request("1"))
    decision = await admitted.place()
    assert isinstance(decision, Dispatch)
    assert decision.place.placement.decode == "a"
    admitted.first_token()
    admitted.output(3)
    admitted.settle(Usage(5, 4), Outcome.COMPLETED)
    admitted.settle(Usage(5, 4), Outcome.COMPLETED)
    one.forget(admitted)
    assert at_rest(one)


async def test_who_waits_is_woken_when_room_comes(pool):
    one = pool(worker("a"))
    first, second = one.submit(request("1")), one.submit(request("2"))
    await first.place()
    waiting = asyncio.create_task(second.place())
    await asyncio.sleep(0)
    assert not waiting.done()
    first.settle(Usage(5, 4), Outcome.COMPLETED)
    assert (await waiting).request.id == "2"
    for admitted in (first, second):
        one.forget(admitted)
    assert at_rest(one)


async def test_a_waiting_request_that_is_cancelled_leaves_the_queue(pool):
    one = pool(worker("a"))
    first, second = one.submit(request("1")), one.submit(request("2"))
    waiting = asyncio.create_task(second.place())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    one.forget(second)
    assert one.scheduler.snapshot().queued == 0
    one.forget(first)
    assert at_rest(one)


async def test_a_place_that_comes_at_the_moment_of_cancelling_is_given_back(pool):
    one = pool(worker("a"))
    first, second = one.submit(request("1")), one.submit(request("2"))
    waiting = asyncio.create_task(second.place())
    await asyncio.sleep(0)
    first.settle(Usage(5, 4), Outcome.COMPLETED)  # decides for the second ...
    waiting.cancel()  # ... whose client leaves before it hears of it
    with pytest.raises(asyncio.CancelledError):
        await waiting
    for admitted in (first, second):
        one.forget(admitted)
    assert at_rest(one)


async def test_a_failed_attempt_is_placed_again_elsewhere(pool):
    one = pool(worker("a"), worker("b"))
    admitted = one.submit(request("1"))
    tried = (await admitted.place()).place.placement.decode
    admitted.failed(AttemptFailure.CONNECT, 0)
    again = await admitted.place()
    assert {tried, again.place.placement.decode} == {"a", "b"}
    admitted.failed(AttemptFailure.TIMEOUT, 0)
    rejected = await admitted.place()
    assert isinstance(rejected, Reject)
    assert (rejected.reason, rejected.last_failure) == (RejectReason.ATTEMPTS_FAILED, AttemptFailure.TIMEOUT)
    one.forget(admitted)
    assert at_rest(one)


async def test_a_request_that_breaks_in_mid_answer_is_over(pool):
    one = pool(worker("a"), worker("b"))
    admitted = one.submit(request("1"))
    await admitted.place()
    admitted.failed(AttemptFailure.LOST, 1)
    assert admitted.over
    one.forget(admitted)
    assert at_rest(one)


async def test_the_timer_turns_away_who_has_waited_too_long(pool):
    one = pool(worker("a"), queue_wait_s=0.03)
    first, second = one.submit(request("1")), one.submit(request("2"))
    decision = await asyncio.wait_for(second.place(), 2)
    assert decision.reason is RejectReason.WAITED_TOO_LONG
    for admitted in (first, second):
        one.forget(admitted)
    assert at_rest(one)


async def test_without_a_worker_the_answer_is_there_at_once(pool):
    one = pool()
    decision = await one.submit(request("1")).place()
    assert decision.reason is RejectReason.NO_WORKER


async def test_events_after_the_end_change_nothing(pool):
    one = pool(worker("a"))
    admitted = one.submit(request("1"))
    await admitted.place()
    admitted.cancel()
    admitted.first_token()
    admitted.output(5)
    admitted.failed(AttemptFailure.LOST, 0)
    admitted.settle(Usage(1, 1), Outcome.COMPLETED)
    one.forget(admitted)
    one.forget(admitted)
    assert at_rest(one)


class Broken(PlacementPolicy):
    """A placement with a bug."""

    def rank(self, question):
        raise LookupError("a bug")


async def test_a_policy_that_raises_is_spoken_of_once_in_a_while_and_requests_go_on(caplog, monkeypatch):
    one = Pool("m", Scheduler(Fcfs(FcfsSettings()), Broken()), asyncio.get_running_loop())
    one.joined(worker("a", slots=9))

    async def ask(name):
        admitted = one.submit(request(name))
        assert (await admitted.place()).place.placement.decode == "a"
        one.forget(admitted)

    with caplog.at_level(logging.ERROR, "fairlead.policies"):
        for name in "1234":
            await ask(name)
        (told,) = caplog.records
        assert told.getMessage() == "a policy of m raised an exception, 1 times since it was last logged"
        assert isinstance(told.exc_info[1], LookupError)
        monkeypatch.setattr(admission, "_FAULTS_EVERY_S", 0.0)
        await ask("5")
        assert [record.getMessage().split(", ")[1].split()[0] for record in caplog.records] == ["1", "4"]
        one.after_event()
        assert len(caplog.records) == 2
    one.close()
    assert at_rest(one)
