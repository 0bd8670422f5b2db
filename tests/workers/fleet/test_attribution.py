"""One request's failed attempts, and who is said to have caused them."""

import pytest

from workers.fleet.attribution import Attribution


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
    attribution = Attribution(reports)
    assert not attribution.failed("a", "HTTP 500", "500: x")
    assert attribution.failed("b", "HTTP 500", "500: y")
    attribution.decided()
    assert reports.workers == []
    assert reports.requests == [("a", "500: x"), ("b", "500: y")]


def test_a_failure_is_the_workers_once_another_answers(reports):
    attribution = Attribution(reports)
    assert not attribution.failed("a", "HTTP 500", "500")
    assert reports.workers == []
    attribution.decided()
    attribution.decided()
    assert reports.workers == [("a", "500")]


@pytest.mark.parametrize(("worker", "kind"), [("a", "HTTP 500"), ("b", "HTTP 502"), ("b", "lost")])
def test_the_same_worker_again_or_another_failure_says_nothing_of_the_request(reports, worker, kind):
    attribution = Attribution(reports)
    assert not attribution.failed("a", "HTTP 500", "first")
    assert not attribution.failed(worker, kind, "second")
    assert reports.workers == [("a", "first")]
    attribution.decided()
    assert reports.workers == [("a", "first"), (worker, "second")]
    assert reports.requests == []
