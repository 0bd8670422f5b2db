"""What a run comes to: each number by hand."""

from itertools import pairwise

import pytest

from router.lab.distribution import percentile, spread
from router.lab.fairness import jain
from router.lab.report import curves, rejections, summarize
from router.lab.results import RequestResult, Run, WorkerTotals
from router.lab.setup import make_setup
from router.lab.workload import Targets

KEYS = [
    "placement",
    "queue",
    "binding",
    "keys",
    "workers",
    "roles",
    "profile",
    "seed",
    "requests",
    "completed",
    "rejected",
    "failed",
    "retries",
    "duration_s",
    "input_tokens",
    "output_tokens",
    "tokens_per_s",
    "service_per_s",
    "steady",
    "prefix_hit_ratio",
    "ttft_s",
    "tpot_s",
    "e2e_s",
    "queue_wait_s",
    "jain",
    "clients",
    "worker_load_cv",
    "disaggregated",
    "preemptions",
    "slo",
    "wall_s",
]


def served(client="a", *, arrived=0.0, wait=1.0, first=2.0, end=12.0, tokens=100, output=11, weight=1.0):
    record = RequestResult(client, weight, tokens, output, arrived)
    record.dispatched, record.first_at, record.ended = arrived + wait, arrived + first, arrived + end
    return record


def turned_away(client="a", arrived=0.0, why="queue_full", after=0.0):
    return RequestResult(client, 1.0, 100, 11, arrived, rejected=why, ended=arrived + after)


def worker(prompt=100, cached=40, generated=20, preemptions=0):
    return WorkerTotals(1, prompt, cached, generated, preemptions, 1.0, 0)


def report(*records, workers=None, targets=None):
    workers = workers or [worker()]
    return summarize(Run(list(records), list(workers), 0.5), make_setup(workers=len(workers), seed=7), targets)


def test_a_report_has_exactly_the_keys_that_were_promised():
    result = report(served())
    assert list(result) == KEYS
    for times in ("ttft_s", "tpot_s", "e2e_s", "queue_wait_s"):
        assert list(result[times]) == ["mean", "p50", "p90", "p99"]
    assert list(result["clients"]["a"]) == ["requests", "service", "ttft_s", "e2e_s"]
    assert list(result["slo"]) == ["ttft_s", "tpot_s", "attained", "classes"]
    assert list(result["steady"]) == ["from_s", "to_s", "service_per_s", "requests_per_s"]


def test_times_tokens_and_rates_of_one_request():
    result = report(served(arrived=5.0))
    assert result["ttft_s"]["mean"] == 2.0
    assert result["tpot_s"]["p99"] == 1.0
    assert result["e2e_s"]["p50"] == 12.0
    assert result["queue_wait_s"]["p90"] == 1.0
    assert result["duration_s"] == 12.0
    assert result["tokens_per_s"] == pytest.approx(111 / 12)
    assert result["service_per_s"] == pytest.approx(122 / 12)
    assert (result["seed"], result["wall_s"]) == (7, 0.5)


def test_rejected_requests_count_but_have_no_times():
    result = report(served(), turned_away(), turned_away("b"))
    assert (result["requests"], result["completed"], result["rejected"]) == (3, 1, 2)
    assert result["input_tokens"] == 100
    assert result["clients"]["b"]["requests"] == 1
    assert result["clients"]["b"]["ttft_s"] == dict.fromkeys(("mean", "p50", "p90", "p99"))
    assert result["slo"]["attained"] == pytest.approx(0)
    assert report(served(), turned_away(), targets=Targets(3, 2))["slo"]["attained"] == 0.5


def test_a_run_without_any_answer_is_a_report_too():
    result = report(turned_away(), workers=(worker(0, 0, 0),))
    assert result["duration_s"] == 0.0
    assert result["service_per_s"] == result["prefix_hit_ratio"] == result["worker_load_cv"] == 0.0
    assert result["e2e_s"]["mean"] is None


def test_hits_are_those_of_completed_requests():
    hit, other = served(tokens=300), served(tokens=100)
    hit.cached_tokens = 200
    assert report(hit, other, turned_away())["prefix_hit_ratio"] == 0.5


def test_load_and_preemptions_come_from_the_engines():
    result = report(served(), workers=(worker(200, 100, 50, preemptions=3), worker(100, 0, 0, preemptions=1)))
    assert result["preemptions"] == 4
    assert result["worker_load_cv"] == pytest.approx(50 / 150)


def test_an_answer_of_one_token_has_no_time_per_output_token():
    assert report(served(output=1, end=2.0))["tpot_s"]["mean"] is None


def test_percentiles_lie_between_the_nearest_ranks():
    assert percentile([1.0, 2.0, 3.0], 0.5) == 2.0
    assert percentile([1.0, 2.0], 0.9) == pytest.approx(1.9)
    assert percentile([4.0], 0.99) == 4.0
    assert spread([3.0, None, 1.0])["mean"] == 2.0


def test_an_answer_that_is_not_streamed_has_an_end_only():
    whole = served()
    whole.streams = False
    result = report(whole, targets=Targets(2.0, 1.0))
    assert (result["ttft_s"]["mean"], result["tpot_s"]["mean"], result["e2e_s"]["mean"]) == (None, None, 12.0)
    assert result["slo"]["attained"] == 1.0
    assert report(whole, targets=Targets(1.9, 1.0))["slo"]["attained"] == 0.0


def test_several_answers_share_their_time():
    several = served(output=22)
    several.sequences = 2
    assert report(several)["tpot_s"]["mean"] == 1.0


def test_a_request_is_measured_by_its_own_service_level():
    strict, other = served(), served()
    strict.targets = Targets(1.0, 1.0)
    slo = report(strict, other, turned_away(), targets=Targets(2.0, 1.0))["slo"]
    assert slo["attained"] == pytest.approx(1 / 3)
    assert slo["classes"] == {
        "TTFT 1 s, TPOT 1 s": {"requests": 1, "attained": 0.0},
        "TTFT 2 s, TPOT 1 s": {"requests": 2, "attained": 0.5},
    }


def test_an_answer_that_broke_off_is_no_service():
    broken = served()
    broken.failed = "worker-0 was lost"
    result = report(broken, served())
    assert (result["completed"], result["failed"], result["input_tokens"]) == (1, 1, 100)


def test_the_steady_window_is_from_the_first_tenth_of_the_arrivals_to_the_last():
    """One request a second, each with its first token after 2 s and its last after 12 s."""
    result = report(*(served(arrived=float(n)) for n in range(21)))["steady"]
    assert (result["from_s"], result["to_s"]) == (2.0, 20.0)
    firsts = 19  # those that arrived from 0 to 18
    output = sum(max(0.0, min(n + 12, 20) - max(n + 2, 2)) for n in range(21)) * 22 / 10
    assert result["service_per_s"] == pytest.approx((firsts * 100 + output) / 18)
    assert result["requests_per_s"] == pytest.approx(9 / 18)


def test_what_comes_after_the_last_arrival_does_not_count_as_steady():
    slow = report(*(served(arrived=float(n), end=1000.0) for n in range(11)))
    assert slow["steady"]["requests_per_s"] == 0.0
    assert slow["steady"]["service_per_s"] < slow["duration_s"]


def test_requests_of_one_moment_have_no_steady_window():
    assert report(served(), served())["steady"]["service_per_s"] is None


# -- Jain's index


def test_there_is_no_index_where_never_two_clients_are_backlogged_at_once():
    assert jain([served("a"), served("a", arrived=3.0)]) is None
    assert jain([served("a"), served("b", arrived=12.0)]) is None
    assert jain([]) is None


def test_equal_service_is_one_and_unequal_service_is_less():
    assert jain([served("a"), served("b")]) == pytest.approx(1.0)
    uneven = [served("a", tokens=300, output=0), served("b", tokens=100, output=0)]
    assert jain(uneven) == pytest.approx(400**2 / (2 * (300**2 + 100**2)))


def test_service_counts_in_proportion_to_weight():
    assert jain([served("a", tokens=200, output=22, weight=2.0), served("b")]) == pytest.approx(1.0)


def test_only_the_window_in_which_two_are_backlogged_counts():
    alone_for_long = served("a", end=100.0, first=90.0, tokens=5000)
    both = [served("a", arrived=200.0), served("b", arrived=200.0)]
    assert jain([alone_for_long, *both]) == pytest.approx(1.0)


def test_output_counts_for_the_part_of_it_that_lies_within_the_window():
    # b is there from 7 to 19: within it a gets the second half of its output, b its input and the same output.
    a = served("a", first=2.0, end=12.0, tokens=0, output=10)
    b = served("b", arrived=7.0, first=2.0, end=12.0, tokens=0, output=10)
    window_a, window_b = 10 / 5, 2 * 10 * (12 - 9) / 10 / 5
    assert jain([a, b]) == pytest.approx((window_a + window_b) ** 2 / (2 * (window_a**2 + window_b**2)))


def test_a_client_that_came_late_is_measured_by_its_own_time():
    long = [served(client, arrived=10.0 * n, first=1.0, end=10.0) for client in "ab" for n in range(10)]
    late = served("c", arrived=90.0, first=1.0, end=10.0)
    assert jain([*long, late]) == pytest.approx(1.0)


def test_a_client_that_got_nothing_lowers_the_index():
    assert jain([served("a"), turned_away("b", after=12.0)]) == pytest.approx(0.5)


# -- the rest


def test_reasons_of_rejections_are_counted_the_most_frequent_first():
    run = Run([turned_away(why="x"), turned_away(why="y"), turned_away(why="y"), served()], [], 0.0)
    assert rejections(run) == {"y": 2, "x": 1}
    assert list(rejections(run)) == ["y", "x"]


def test_curves_add_up_to_what_was_served():
    run = Run([served("a"), served("b", arrived=3.0), turned_away("b")], [worker(), worker(500)], 0.0)
    result = curves(run)
    assert (result.ttft_s, result.e2e_s) == ([2.0, 2.0], [12.0, 12.0])
    assert result.service["a"][-1] == pytest.approx(122)
    assert result.service["b"][-1] == pytest.approx(122)
    assert all(after >= before for before, after in pairwise(result.service["a"]))
    assert len(result.service["a"]) * result.bin_s == pytest.approx(15.0)
    assert result.worker_load == [100, 500]
