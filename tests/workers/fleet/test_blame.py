"""One request's failed attempts, and who is said to have caused them."""

import pytest

from workers.fleet.blame import Blame


class Reports:
    def __init__(self):
        self.workers, self.requests = [], []

    def request_failed(self, worker_id, why):
        self.workers.append((worker_id, why))

    def request_at_fault(self, worker_id, why):
        self.requests.append((worker_id, why))


@pytest.fixture
def reports():
    return Reports()


def test_the_same_failure_on_two_workers_is_the_requests(reports):
    blame = Blame(reports)
    assert not blame.failed("a", "HTTP 500", "500: x")
    assert blame.failed("b", "HTTP 500", "500: y")
    blame.decided()
    assert reports.workers == []
    assert reports.requests == [("a", "500: x"), ("b", "500: y")]


def test_a_failure_is_the_workers_once_another_answers(reports):
    blame = Blame(reports)
    assert not blame.failed("a", "HTTP 500", "500")
    assert reports.workers == []
    blame.decided()
    blame.decided()
    assert reports.workers == [("a", "500")]


@pytest.mark.parametrize(("worker", "kind"), [("a", "HTTP 500"), ("b", "HTTP 502"), ("b", "lost")])
def test_the_same_worker_again_or_another_failure_says_nothing_of_the_request(reports, worker, kind):
    blame = Blame(reports)
    assert not blame.failed("a", "HTTP 500", "first")
    assert not blame.failed(worker, kind, "second")
    assert reports.workers == [("a", "first")]
    blame.decided()
    assert reports.workers == [("a", "first"), (worker, "second")]
    assert reports.requests == []
