"""The control plane without an edge: its messages are sent by the test."""

import asyncio
import logging

import pytest

from policies.model import AttemptFailure, Outcome, Usage
from router.config.schema import Config
from router.config.sections import ClientConfig
from router.control.attempt_outcomes import OUTCOMES, Effect
from router.control.control_plane import ControlPlane
from router.control.parties.identity import Clients
from router.control.pools import Pools
from router.control.scheduler_factory import make_scheduler
from router.port import Dispatch, Facts, Failed, Identity, Reject, RejectKind, Settled, Unscheduled
from workers.fleet.worker import State, Worker, WorkerJoined, WorkerLeft, WorkerSpec

A, B, C = "http://a:1", "http://b:1", "http://c:1"
ANN = Identity("ann", "ann", 1.0, "ann")


class Health:
    """Remembers what it heard of workers."""

    def __init__(self):
        self.heard = []
        self.resolving = set()
        self.asked_again = 0

    async def look_again(self):
        self.asked_again += 1

    def resolve_adapter(self, name):
        self.resolving.add(name)
        return True

    def adapter_unknown(self, worker_id, name):
        self.heard.append((worker_id, f"knows no {name}"))

    def request_at_fault(self, worker_id, why):
        self.heard.append((worker_id, "not at fault"))

    def request_ok(self, worker_id):
        self.heard.append((worker_id, "ok"))

    def request_failed(self, worker_id, why, *, refused=False, connect=False):
        self.heard.append((worker_id, "leaving" if refused else "unreachable" if connect else "failed"))


class Plane:
    """A control plane with what a test sees of it."""

    def __init__(self, *clients, **config):
        self.health, self.counted, self.now = Health(), [], 100.0
        made = Config.load(env={}, overrides=config)
        self.clients = Clients(clients)
        self.pools = Pools(make_scheduler=lambda: make_scheduler(made), rested=lambda _: None, aliases={})
        self.control = ControlPlane(
            self.pools,
            self.clients,
            self.health,
            lambda worker, reason: self.counted.append((worker, reason)),
            asyncio.get_running_loop().time,
            attempts=3,
        )

    def join(self, *urls, **spec):
        for url in urls:
            served = frozenset({"tiny"})
            known = Worker(WorkerSpec(url, **spec), state=State.UP, model="tiny", served_names=served)
            self.pools.on_fleet(WorkerJoined(known))

    def held(self):
        """Everything that a request takes and gives back."""
        pools = self.pools.by_model.values()
        loads = [row for pool in pools for row in pool.scheduler.snapshot().workers]
        return (
            len(self.control),
            sum(member.open for member in self.pools.members.values()),
            sum(pool.scheduler.snapshot().queued + pool.scheduler.snapshot().in_flight for pool in pools),
            sum(row.requests + row.sequences + row.prefill_owed + row.kv_reserved for row in loads),
            sum(account.open for account in self.clients.quota.accounts().values()),
        )


@pytest.fixture
async def plane():
    made = Plane(ClientConfig(name="ann", tokens_per_minute=1000, max_concurrent=2))
    yield made
    made.pools.close()


def facts(request="r", **more):
    return Facts(**{"id": request, "identity": ANN, "model": "tiny", "prompt": b"x" * 40, **more})


def failed(worker, reason, request="r", **more):
    return Failed(request, worker, reason, "as a test says", **more)


async def test_a_request_holds_a_place_until_it_is_settled(plane):
    plane.join(A)
    dispatch = await plane.control.admit(facts(max_output_tokens=5))
    assert (dispatch.worker, dispatch.model, dispatch.attempt, dispatch.input_tokens) == (A, "tiny", 1, 10)
    assert plane.held()[:2] == (1, 1)
    plane.control.first_token("r")
    plane.control.output("r", 3)
    plane.control.settled(Settled("r", Outcome.COMPLETED, Usage(12, 5), exact=True))
    assert plane.held() == (0, 0, 0, 0, 0)
    assert plane.health.heard == [(A, "ok")]


async def test_usage_teaches_how_many_tokens_a_byte_has(plane):
    plane.join(A)
    long = b"x" * 400
    await plane.control.admit(facts(prompt=long))
    plane.control.settled(Settled("r", Outcome.COMPLETED, Usage(200, 5), exact=True))
    assert (await plane.control.admit(facts(prompt=long))).input_tokens == 200


async def test_events_after_the_end_change_nothing(plane):
    plane.join(A)
    await plane.control.admit(facts())
    for _ in range(2):
        plane.control.cancelled("r")
    plane.control.first_token("r")
    plane.control.prefill_done("r")
    plane.control.output("r", 1)
    plane.control.stored("r", "resp_1")
    plane.control.settled(Settled("r", Outcome.COMPLETED, Usage(1, 1)))
    assert await plane.control.failed(failed(A, AttemptFailure.LOST)) is None
    assert plane.held() == (0, 0, 0, 0, 0)
    assert (plane.health.heard, plane.counted, len(plane.control.owners)) == ([], [], 0)


async def test_a_request_that_waits_is_given_back_when_it_is_cancelled(plane):
    plane.join(A, max_num_seqs=1)
    await plane.control.admit(facts("first"))
    waiting = asyncio.create_task(plane.control.admit(facts("second")))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    plane.control.cancelled("second")
    plane.control.cancelled("first")
    assert plane.held() == (0, 0, 0, 0, 0)


async def test_a_failed_attempt_is_followed_by_one_elsewhere(plane, caplog):
    plane.join(A, B)
    first = await plane.control.admit(facts())
    second = await plane.control.failed(failed(first.worker, AttemptFailure.LOST))
    assert isinstance(second, Dispatch)
    assert (second.worker != first.worker, second.attempt) == (True, 2)
    assert plane.held()[:2] == (1, 1)
    assert plane.counted == [(first.worker, AttemptFailure.LOST)]
    assert plane.health.heard == [], "the next attempt will show whose fault it was"
    plane.control.first_token("r")
    assert plane.health.heard == [(first.worker, "failed")]
    plane.control.cancelled("r")
    assert f"attempt 1 on {first.worker}: as a test says" in caplog.text


@pytest.mark.parametrize("unscheduled", [True, False])
async def test_the_same_failure_on_two_workers_is_the_requests(plane, unscheduled):
    plane.join(A, B, C)
    first = await plane.control.admit(Unscheduled("r", ANN, "tiny") if unscheduled else facts())
    second = await plane.control.failed(failed(first.worker, AttemptFailure.ERROR, status=500))
    end = await plane.control.failed(failed(second.worker, AttemptFailure.ERROR, status=500))
    assert end.kind is RejectKind.RELAY
    assert plane.health.heard == [(first.worker, "not at fault"), (second.worker, "not at fault")]
    assert plane.held() == (0, 0, 0, 0, 0)


async def test_a_lost_connection_is_tried_on_one_more_worker(plane):
    plane.join(A, B, C)
    first = await plane.control.admit(facts())
    second = await plane.control.failed(failed(first.worker, AttemptFailure.LOST))
    end = await plane.control.failed(failed(second.worker, AttemptFailure.LOST))
    assert end.kind is RejectKind.WORKER_FAILED
    assert plane.held() == (0, 0, 0, 0, 0)


async def test_different_failures_are_the_workers(plane):
    plane.join(A, B, C)
    first = await plane.control.admit(facts())
    second = await plane.control.failed(failed(first.worker, AttemptFailure.ERROR, status=500))
    third = await plane.control.failed(failed(second.worker, AttemptFailure.ERROR, status=502))
    plane.control.settled(Settled("r", Outcome.COMPLETED, Usage(10, 1)))
    assert sorted(plane.health.heard) == sorted(
        [(first.worker, "failed"), (second.worker, "failed"), (third.worker, "ok")]
    )


async def test_a_name_that_no_worker_lists_is_asked_about_and_offered_to_resolvers(plane):
    plane.join(A)
    await plane.control.look_again("sql")
    await plane.control.look_again("tiny")
    await plane.control.look_again("x" * 5_000_000)
    await plane.control.look_again("a\nb")
    assert (plane.health.asked_again, plane.health.resolving) == (4, {"sql"})


async def test_a_model_that_a_worker_does_not_find_is_told_of(plane):
    plane.join(A)
    await plane.control.admit(facts())
    plane.control.settled(Settled("r", Outcome.REFUSED, Usage(0, 0), not_found=True))
    assert (A, "knows no tiny") in plane.health.heard


async def test_a_stored_response_of_an_unknown_worker_is_asked_of_each_in_turn(plane):
    plane.join(A, B, C)
    asked = [await plane.control.admit(Unscheduled("r", ANN, None, "resp_1"))]
    for _ in range(2):
        asked.append(await plane.control.failed(failed(asked[-1].worker, AttemptFailure.NOT_HERE, status=404)))
    assert {dispatch.worker for dispatch in asked} == {A, B, C}
    end = await plane.control.failed(failed(asked[-1].worker, AttemptFailure.NOT_HERE, status=404))
    assert (end.kind, plane.health.heard) == (RejectKind.RELAY, [])
    assert plane.held() == (0, 0, 0, 0, 0)


async def test_where_clients_have_keys_a_stored_response_of_unknown_origin_is_nobodys(plane):
    plane.pools.configure({}, keys_needed=True)
    plane.join(A, B)
    asked = await plane.control.admit(Unscheduled("r", ANN, None, "resp_1"))
    end = await plane.control.failed(failed(asked.worker, AttemptFailure.NOT_HERE, status=404))
    assert end.kind is RejectKind.RELAY


async def test_a_failure_in_mid_answer_ends_the_request(plane):
    plane.join(A, B)
    first = await plane.control.admit(facts())
    assert await plane.control.failed(failed(first.worker, AttemptFailure.LOST, answering=True)) is None
    assert plane.held() == (0, 0, 0, 0, 0)


@pytest.mark.parametrize("reason", AttemptFailure)
async def test_the_table_says_what_follows_from_each_kind_of_failure(plane, reason, caplog):
    caplog.set_level(logging.DEBUG)
    plane.join(A)
    await plane.control.admit(facts())
    row = OUTCOMES[reason]
    answer = await plane.control.failed(failed(A, reason))
    # A misfit of a pair says nothing of one worker, and a lost connection is tried again where there is no other.
    if reason in {AttemptFailure.HANDOVER, AttemptFailure.LOST}:
        assert isinstance(answer, Dispatch)
        plane.control.cancelled("r")
    else:
        assert (answer.kind, answer.retry_after_s) == (row.answer, row.retry_after_s)
        assert answer.message.startswith(row.last_words)
    assert plane.health.heard == ([] if row.effect is Effect.NONE else [(A, row.effect.value)])
    [record] = [record for record in caplog.records if record.name == "fairlead.gateway"]
    assert record.levelno == row.level
    assert plane.counted == [(A, reason)]
    assert plane.held() == (0, 0, 0, 0, 0)


async def test_a_request_that_is_wrong_itself_is_not_tried_elsewhere(plane):
    plane.join(A, B)
    first = await plane.control.admit(facts())
    answer = await plane.control.failed(failed(first.worker, AttemptFailure.CLIENTS_FAULT))
    assert (type(answer), answer.kind) == (Reject, RejectKind.BAD_REQUEST)
    assert plane.held() == (0, 0, 0, 0, 0)


async def test_what_no_worker_serves_is_rejected(plane):
    assert (await plane.control.admit(facts())).kind is RejectKind.UNAVAILABLE
    assert (await plane.control.admit(Unscheduled("r", ANN, None, "resp_1"))).kind is RejectKind.UNAVAILABLE
    assert plane.held() == (0, 0, 0, 0, 0)


async def test_limits_count_for_the_account_and_end_with_the_request(plane):
    plane.join(A)
    for name in ("1", "2"):
        await plane.control.admit(facts(name, max_output_tokens=1))
    third = await plane.control.admit(facts("3"))
    assert (third.kind, "2 open requests" in third.message) == (RejectKind.OVER_QUOTA, True)
    plane.control.settled(Settled("1", Outcome.COMPLETED, Usage(10, 1)))
    assert isinstance(await plane.control.admit(facts("4", max_output_tokens=1)), Dispatch)
    for name in ("2", "4"):
        plane.control.cancelled(name)
    assert plane.held() == (0, 0, 0, 0, 0)


async def test_a_stored_response_leads_back_to_its_worker(plane):
    plane.join(A, B)
    first = await plane.control.admit(facts())
    plane.control.stored("r", "resp_1")
    plane.control.settled(Settled("r", Outcome.COMPLETED, Usage(1, 1)))
    other = next(iter({A, B} - {first.worker}))
    for name in ("1", "2"):
        again = await plane.control.admit(facts(name, previous_response="resp_1", identity=Identity("b", "b")))
        assert again.worker == first.worker
        plane.control.cancelled(name)
    asked = await plane.control.admit(Unscheduled("3", ANN, None, "resp_1"))
    assert (asked.worker, asked.model) == (first.worker, "tiny")
    elsewhere = await plane.control.failed(failed(first.worker, AttemptFailure.CONNECT, "3"))
    assert elsewhere.worker == other
    plane.control.cancelled("3")
    assert plane.held() == (0, 0, 0, 0, 0)


async def test_what_passes_through_goes_to_the_least_busy_worker_and_on_as_often_as_what_is_scheduled(plane):
    plane.join(A, B)
    busy = await plane.control.admit(facts())
    asked = await plane.control.admit(Unscheduled("p", ANN, "tiny"))
    assert asked.worker != busy.worker
    on = await plane.control.failed(failed(asked.worker, AttemptFailure.BUSY, "p"))
    assert on.worker == busy.worker
    end = await plane.control.failed(failed(on.worker, AttemptFailure.TIMEOUT, "p"))
    assert end.kind is RejectKind.WORKER_TIMEOUT
    plane.control.cancelled("r")
    assert plane.held() == (0, 0, 0, 0, 0)


async def test_a_worker_that_leaves_takes_no_request_with_it(plane):
    plane.join(A, B)
    first = await plane.control.admit(facts())
    plane.pools.on_fleet(WorkerLeft(first.worker, "removed"))
    second = await plane.control.failed(failed(first.worker, AttemptFailure.CONNECT))
    assert second.worker != first.worker
    plane.control.cancelled("r")
    assert plane.held() == (0, 0, 0, 0, 0)


@pytest.fixture
async def pair():
    made = Plane(policies={"disaggregate": "always"})
    made.join(A, roles=frozenset({"prefill"}))
    made.join(B, roles=frozenset({"decode"}))
    yield made
    made.pools.close()


async def test_a_pair_counts_as_open_on_the_worker_that_is_at_it(pair):
    dispatch = await pair.control.admit(facts())
    assert (dispatch.prefill, dispatch.worker) == (A, B)
    members = pair.pools.members
    assert (members[A].open, members[B].open) == (1, 0)
    pair.control.prefill_done("r")
    assert (members[A].open, members[B].open) == (0, 1)
    pair.control.settled(Settled("r", Outcome.COMPLETED, Usage(10, 5), fetched=True))
    assert pair.health.heard == [(A, "ok"), (B, "ok")]
    assert pair.held() == (0, 0, 0, 0, 0)


async def test_an_error_over_fetched_kv_is_the_pairs_and_the_next_attempt_runs_whole(pair):
    pair.join(C)
    dispatch = await pair.control.admit(facts())
    assert dispatch.prefill == A
    pair.control.prefill_done("r")
    again = await pair.control.failed(failed(dispatch.worker, AttemptFailure.ERROR, fetching=True))
    assert again.prefill is None
    assert pair.counted == [(dispatch.worker, AttemptFailure.HANDOVER)]
    assert pair.health.heard == [(A, "ok")]
    pair.control.cancelled("r")
    later = await pair.control.admit(facts("later"))
    assert (later.prefill, later.worker) != (A, dispatch.worker), "the two are kept apart for a while"
    pair.control.cancelled("later")
    assert pair.held() == (0, 0, 0, 0, 0)


async def test_keys_are_known_by_their_digests():
    plane = Plane(ClientConfig(name="a", keys=("ka",)))
    reject = plane.control.identify((), None)
    assert reject.kind is RejectKind.UNAUTHORIZED


# -- streams that go on elsewhere


async def test_a_stream_that_goes_on_is_charged_once(plane):
    plane.join(A, B)
    first = await plane.control.admit(facts(streams=True, max_output_tokens=100, input_tokens=20))
    plane.control.first_token("r")
    plane.control.output("r", 40)
    second = await plane.control.failed(
        failed(first.worker, AttemptFailure.LOST, answering=True, resume_tokens=40)
    )
    assert (second.worker != first.worker, second.attempt, second.input_tokens) == (True, 2, 60)
    assert second.output_tokens <= 60
    plane.control.first_token("r")
    plane.control.output("r", 60)
    plane.control.settled(Settled("r", Outcome.COMPLETED, Usage(20, 100), exact=True))
    assert plane.held() == (0, 0, 0, 0, 0)
    [pool] = plane.pools.by_model.values()
    [account] = [each for each in pool.scheduler._order.accounts if each.party == ("ann",)]
    assert account.counter == pytest.approx(20 + 2 * 100), "as if one worker had given all of it"


async def test_a_stream_that_cannot_be_placed_again_hears_why(plane):
    plane.join(A)
    first = await plane.control.admit(facts(streams=True))
    plane.control.first_token("r")
    for _ in range(3):
        end = await plane.control.failed(
            failed(first.worker, AttemptFailure.SHUTDOWN, answering=True, resume_tokens=3)
        )
        if not isinstance(end, Dispatch):
            break
    assert isinstance(end, Reject)
    assert plane.held() == (0, 0, 0, 0, 0)
    assert len(plane.control.seams) == 0


async def test_only_so_many_streams_change_their_worker_at_once(plane):
    plane.join(A, B)
    plane.control.seams.limit = 1
    for name in ("r", "s"):
        await plane.control.admit(facts(name, streams=True))
        plane.control.first_token(name)
    workers = {name: plane.control._requests[name].decode for name in ("r", "s")}

    def dies(name):
        failure = failed(workers[name], AttemptFailure.LOST, name, answering=True, resume_tokens=3)
        return asyncio.create_task(plane.control.failed(failure))

    one, other = dies("r"), dies("s")
    await asyncio.wait({one})
    for _ in range(5):
        await asyncio.sleep(0)
    assert (other.done(), len(plane.control.seams), plane.control.seams.waiting) == (False, 1, 1)
    plane.control.first_token("r")
    await asyncio.wait({other})
    assert (len(plane.control.seams), plane.control.seams.waiting) == (1, 0)
    plane.control.cancelled("s")
    plane.control.cancelled("r")
    assert len(plane.control.seams) == 0
    assert plane.held() == (0, 0, 0, 0, 0)
