import re

import pytest

from policies.model import LegFailure, Outcome, Reason, Usage
from router.brain import scheduler_for
from router.config import Config
from router.metrics import Metrics


@pytest.fixture
def metrics():
    made = Metrics("1.2.3", max_clients=3, clients=["team"])
    made.know_model("tiny")
    return made


def finish(metrics, **more):
    fields = {"line": "tiny", "client": "team", "outcome": Outcome.COMPLETED, "streamed": True, "e2e_s": 1.1}
    fields |= {
        "waited_s": 0.0,
        "ttft_s": 0.1,
        "usage": Usage(10, 11, 4),
        "predicted_cached": 3,
        "reason": Reason.HIT,
    }
    metrics.finished(**{**fields, **more})


def value(metrics, name, **labels):
    for found, text in re.findall(rf"^fairlead_{name}(?:{{(.*)}})? (\S+)$", metrics.page().decode(), re.MULTILINE):
        if all(f'{key}="{wanted}"' in found for key, wanted in labels.items()):
            return float(text)
    return None


def test_every_known_label_set_starts_at_zero(metrics):
    metrics.know_worker("http://a:1")
    for outcome in Outcome:
        assert value(metrics, "requests_total", model="tiny", client="team", outcome=outcome.value) == 0
    for reason in Reason:
        assert value(metrics, "decisions_total", model="tiny", reason=reason.value) == 0
    for failure in LegFailure:
        assert value(metrics, "leg_failures_total", worker="http://a:1", reason=failure.value) == 0
    assert value(metrics, "time_to_first_token_seconds_count", model="tiny") == 0
    assert value(metrics, "cancellations_total", model="tiny") == 0
    assert value(metrics, "build_info", version="1.2.3") == 1


def test_without_configured_clients_the_anonymous_one_starts_at_zero():
    metrics = Metrics("1")
    metrics.know_model("tiny")
    assert value(metrics, "requests_total", client="anonymous", outcome="completed") == 0


def test_a_finished_request_counts_once_everywhere(metrics):
    finish(metrics)
    assert value(metrics, "requests_total", outcome="completed") == 1
    assert [value(metrics, "tokens_total", kind=kind) for kind in ("input", "output", "cached")] == [10, 11, 4]
    assert value(metrics, "time_to_first_token_seconds_sum") == pytest.approx(0.1)
    assert value(metrics, "time_per_output_token_seconds_sum") == pytest.approx(0.1)
    assert value(metrics, "request_duration_seconds_sum") == pytest.approx(1.1)
    assert value(metrics, "queue_wait_seconds_count") == 1
    assert value(metrics, "decisions_total", reason="hit") == 1
    assert value(metrics, "predicted_cached_tokens_total") == 3


def test_what_a_request_never_came_to_is_not_observed(metrics):
    nothing = {"waited_s": None, "ttft_s": None, "usage": None, "predicted_cached": None, "reason": None}
    finish(metrics, outcome=Outcome.CANCELLED, **nothing)
    finish(metrics, streamed=False)
    assert value(metrics, "cancellations_total") == 1
    assert value(metrics, "time_to_first_token_seconds_count") == 0
    assert value(metrics, "queue_wait_seconds_count") == 1


def test_clients_beyond_the_bound_share_one_label(metrics):
    for number in range(50):
        finish(metrics, client=f"user-{number}")
    labels = set(re.findall(r'fairlead_requests_total{client="([^"]*)"', metrics.page().decode()))
    assert labels == {"team", "user-0", "user-1", "other"}
    assert value(metrics, "requests_total", client="other", outcome="completed") == 48
    assert len(metrics._cells) <= 4


def test_a_worker_that_has_left_leaves_no_series(metrics):
    metrics.know_worker("http://a:1")
    metrics.leg_failed("http://a:1", LegFailure.LOST)
    metrics.forget_worker("http://a:1")
    assert "http://a:1" not in metrics.page().decode()


def test_a_name_that_nobody_chose_for_metrics_does_not_break_the_page(metrics):
    finish(metrics, client='a"b\\c\nd')
    assert value(metrics, "requests_total", outcome="completed", client="team") == 0
    assert 'client="a\\"b\\\\c\\nd"' in metrics.page().decode()


class OnePool:
    """As much of `Pools` as the metrics read."""

    def __init__(self, scheduler):
        self.scheduler = scheduler
        self.by_model = {"tiny": self}
        self.members = {}


def test_exceptions_of_policies_are_read_when_asked(metrics):
    scheduler = scheduler_for(Config.load(env={}))
    metrics.watch(OnePool(scheduler), lambda: 0)
    assert value(metrics, "policy_faults_total", model="tiny") == 0
    scheduler.faults.add(LookupError("a bug"))
    assert value(metrics, "policy_faults_total", model="tiny") == 1
