"""A worker's reports find the index of its pool, and what becomes of them is said once."""

import logging

import pytest

from policies.model import WorkerFacts
from policies.prefixes.index import Prefixes
from policies.prefixes.trust import Trust
from router.control.cache_reports import CacheReports
from workers.fleet.worker import Worker, WorkerChanged, WorkerLeft, WorkerSpec
from workers.kv_events.decode import AllBlocksCleared, BlocksRemoved, BlocksStored

WORKER = Worker(WorkerSpec("http://a:1"))
A = WORKER.id


def stored(*hashes, parent=None, size=4):
    return BlocksStored(hashes, parent, tuple(range(size * len(hashes))), size)


class Workers:
    """The indices by worker, of those whose pool is known."""

    def __init__(self, *known):
        self.by_worker = {worker: Prefixes() for worker in known}
        self.reports = CacheReports(self.by_worker.get)

    def follow(self, worker=A):
        """From its birth on, with nothing that is past."""
        self.reports.on_following(worker)
        self.reports.on_caught_up(worker)

    def index(self, worker=A):
        return self.by_worker[worker].reports.trust(worker)

    def held(self, worker=A):
        return self.by_worker[worker].held_tokens(worker)


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.INFO, "fairlead.kv_events")
    return lambda: [(record.levelname, record.getMessage()) for record in caplog.records]


def test_reports_go_to_the_index_of_the_workers_pool(said):
    workers = Workers(A, "b")
    workers.follow()
    workers.reports.on_batch(A, [stored(1, 2, 3), BlocksRemoved((3,))])
    assert (workers.index(), workers.held(), workers.index("b")) == (Trust.EXACT, 8, Trust.PREDICTED)
    workers.reports.on_batch(A, [AllBlocksCleared(), stored(1)])
    assert workers.held() == 4
    assert said() == [("INFO", f"worker {A}: its cache is known exactly, from its reports")]


def test_what_was_lost_is_learned_anew_and_said_once(said):
    workers = Workers(A)
    workers.follow()
    workers.reports.on_batch(A, [stored(1, 2, 3)])
    workers.reports.on_lost(A, "a gap")
    workers.reports.on_caught_up(A)
    workers.reports.on_lost(A, "another")
    assert (workers.index(), workers.held()) == (Trust.PARTIAL, 0)
    workers.reports.on_caught_up(A)
    workers.reports.on_batch(A, [AllBlocksCleared()])
    assert workers.index() is Trust.EXACT
    assert [message.split(" known ")[1][:7] for _, message in said()] == ["exactly", "in part", "exactly"]


def test_a_cache_is_known_exactly_once_the_past_has_been_told(said):
    workers = Workers(A)
    workers.reports.on_following(A)
    workers.reports.on_batch(A, [stored(1, 2, 3), AllBlocksCleared(), stored(4)])
    assert (workers.index(), workers.held(), said()) == (Trust.PARTIAL, 4, [])
    workers.reports.on_caught_up(A)
    assert (workers.index(), workers.held()) == (Trust.EXACT, 4)
    assert said() == [("INFO", f"worker {A}: its cache is known exactly, from its reports")]


def test_who_catches_up_without_a_pool_is_exact_in_its_first():
    workers = Workers()
    workers.reports.on_following(A)
    workers.by_worker[A] = Prefixes()
    workers.reports.follow(WorkerChanged(WORKER))
    assert workers.index() is Trust.PARTIAL
    workers.reports.on_caught_up(A)
    assert workers.index() is Trust.EXACT


def test_who_has_no_pool_yet_begins_when_it_has_one():
    workers = Workers()
    workers.follow()
    workers.by_worker[A] = Prefixes()
    workers.reports.follow(WorkerChanged(WORKER))
    assert workers.index() is Trust.EXACT


@pytest.mark.parametrize("missed", ["batch", "loss"])
def test_what_came_before_there_was_a_pool_is_lost(missed):
    workers = Workers()
    workers.follow()
    if missed == "batch":
        workers.reports.on_batch(A, [stored(1, 2)])
    else:
        workers.reports.on_lost(A, "it began before we did")
    workers.by_worker[A] = Prefixes()
    workers.reports.on_batch(A, [stored(4)])
    assert (workers.index(), workers.held()) == (Trust.PARTIAL, 4)


def test_an_event_that_cannot_be_true_loses_what_was_known_and_is_said_once(said):
    workers = Workers(A)
    workers.follow()
    for _ in range(3):
        workers.reports.on_batch(A, [stored(1, 2), BlocksStored((3,), None, (1, 2), 4), stored(5, 6)])
    assert (workers.index(), workers.held()) == (Trust.PARTIAL, 0)
    [complaint] = [message for level, message in said() if level == "WARNING"]
    assert (
        complaint == f"KV events of {A}: one of them cannot be true: 1 blocks of 4 tokens cannot have 2 token ids"
    )


def test_a_worker_that_is_not_believed_is_predicted_and_the_reason_is_said(said):
    workers = Workers(A)
    workers.by_worker[A].update_facts(WorkerFacts(A, frozenset({"m"}), block_size=16))
    workers.follow()
    for number in range(3):
        workers.reports.on_batch(A, [stored(number)])
    workers.reports.follow(WorkerChanged(WORKER))
    assert (workers.index(), workers.held()) == (Trust.PREDICTED, 0)
    level, message = said()[-1]
    assert (level, len(said())) == ("WARNING", 2)
    assert message == (
        f"worker {A}: its KV events are not believed: its events have blocks of 4 tokens, its metrics say 16; "
        "its cache is predicted"
    )


def test_a_worker_that_left_leaves_nothing():
    workers = Workers()
    workers.follow()
    workers.reports.follow(WorkerLeft(A, "removed"))
    workers.by_worker[A] = Prefixes()
    workers.reports.on_batch(A, [stored(1)])
    assert workers.index() is Trust.PREDICTED
