"""The machine of marks, without a clock of its own."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.fleet.health import Health, HealthSettings
from workers.fleet.worker import Exclusion, State

SETTINGS = HealthSettings()
ASLEEP_FOR_S = 15.0


def healthy(now=0.0, config=SETTINGS):
    health = Health(config)
    health.probe_ok(now)
    return health


def fail(health, now, times=1, **how):
    for _ in range(times):
        health.request_failed("no first byte within 60 s", now, **how)


def state(health, now):
    return health.verdict(now).state


def test_a_worker_is_starting_until_a_probe_succeeds_and_says_what_is_missing():
    health = Health(SETTINGS)
    assert state(health, 0.0) is State.STARTING
    for now in range(20):
        health.probe_failed("connection refused", float(now), connect=True)
    assert health.verdict(20.0).state is State.STARTING
    assert health.verdict(20.0).why == "probe failed: connection refused"
    health.probe_ok(21.0)
    assert state(health, 21.0) is State.UP
    assert health.verdict(21.0).why == ""


def test_three_failed_requests_in_a_row_make_it_suspect_and_two_do_not():
    health = healthy()
    fail(health, 1.0, 2)
    assert state(health, 1.0) is State.UP
    fail(health, 1.0)
    assert state(health, 1.0) is State.SUSPECT
    assert "no first byte within 60 s" in health.verdict(1.0).why


def test_a_success_between_failures_begins_the_count_anew():
    health = healthy()
    for now in range(10):
        fail(health, now, 2)
        assert health.request_ok(now)
    assert state(health, 10.0) is State.UP


def test_failures_that_lie_far_apart_are_not_in_a_row():
    health = healthy()
    for turn in range(10):
        fail(health, turn * (SETTINGS.fail_window_s + 1))
        assert state(health, turn * (SETTINGS.fail_window_s + 1)) is State.UP


def test_a_good_probe_does_not_clear_what_requests_marked_but_time_does():
    health = healthy()
    fail(health, 1.0, 3)
    health.probe_ok(1.5)
    assert state(health, 1.5) is State.SUSPECT
    end = health.next_change(1.5)
    assert end == 1.0 + SETTINGS.suspect_for_s
    assert state(health, end - 0.001) is State.SUSPECT
    assert state(health, end) is State.UP
    assert health.next_change(end) is None


def test_a_success_clears_the_mark_at_once():
    health = healthy()
    fail(health, 1.0, 3)
    assert health.request_ok(1.1)
    assert state(health, 1.1) is State.UP
    assert not health.request_ok(1.2)


def test_marks_grow_with_every_further_failure_up_to_their_bound():
    health, now, lengths = healthy(), 1.0, []
    fail(health, now, 2)
    for _ in range(8):
        fail(health, now)  # one failure is enough once there was a mark
        end = health.next_change(now)
        lengths.append(end - now)
        now = end
    assert lengths == [2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]


def test_a_burst_of_failures_is_one_mark():
    health = healthy()
    fail(health, 1.0, 500)
    assert health.next_change(1.0) == 1.0 + SETTINGS.suspect_for_s


def test_growth_is_forgotten_after_a_success_and_after_a_quiet_time():
    health = healthy()
    fail(health, 1.0, 3)
    health.request_ok(2.0)
    fail(health, 2.0, 2)
    assert state(health, 2.0) is State.UP
    fail(health, 2.0)
    later = health.next_change(2.0) + SETTINGS.suspect_max_s + 1
    fail(health, later)
    assert state(health, later) is State.UP
    fail(health, later, 2)
    assert health.next_change(later) == later + SETTINGS.suspect_for_s


def test_one_failed_probe_makes_it_suspect_three_take_it_down_and_one_success_brings_it_back():
    health = healthy()
    health.probe_failed("no answer within 2 s", 1.0)
    assert state(health, 1.0) is State.SUSPECT
    health.probe_failed("no answer within 2 s", 2.0)
    assert state(health, 2.0) is State.SUSPECT
    health.probe_failed("no answer within 2 s", 3.0)
    assert state(health, 3.0) is State.DOWN
    assert health.verdict(3.0).why == "probe failed: no answer within 2 s"
    health.probe_ok(4.0)
    assert state(health, 4.0) is State.UP


@pytest.mark.parametrize("probe_first", [True, False])
def test_a_connection_refused_to_a_request_and_to_a_probe_is_down_at_once(probe_first):
    health = healthy()
    if probe_first:
        health.probe_failed("connection refused", 1.0, connect=True)
        assert state(health, 1.0) is State.SUSPECT
        fail(health, 1.1, connect=True)
    else:
        fail(health, 1.0, connect=True)
        assert state(health, 1.0) is State.UP
        health.probe_failed("connection refused", 1.1, connect=True)
    assert state(health, 1.1) is State.DOWN


def test_a_refused_connection_of_long_ago_agrees_with_nothing():
    health = healthy()
    fail(health, 1.0, connect=True)
    later = 2.0 + SETTINGS.fail_window_s
    health.probe_failed("connection refused", later, connect=True)
    assert state(health, later) is State.SUSPECT


def test_a_refused_probe_is_forgotten_with_the_next_good_one():
    health = healthy()
    health.probe_failed("connection refused", 1.0, connect=True)
    health.probe_ok(1.2)
    fail(health, 1.3, connect=True)
    assert state(health, 1.3) is State.UP


def test_slow_probes_do_not_take_down_a_worker_that_serves_requests():
    health = healthy()
    for now in range(100):
        health.request_ok(now)
        health.probe_failed("no answer within 2 s", now)
        assert state(health, now) is State.SUSPECT
    health.probe_failed("no answer within 2 s", 101.0)
    assert state(health, 101.0) is State.DOWN


def test_requests_that_still_end_well_do_not_hide_that_nobody_listens_any_more():
    health = healthy()
    for now in range(SETTINGS.down_after_probes):
        health.request_ok(now)
        health.probe_failed("connection refused", now, connect=True)
    assert state(health, 3.0) is State.DOWN


def test_a_worker_that_says_it_shuts_down_takes_nothing_new_whatever_its_probe_says():
    health = healthy()
    health.refused("cannot schedule new futures after shutdown", 1.0)
    health.probe_ok(2.0)
    health.request_ok(2.0)  # began before the shutdown
    assert state(health, 2.0) is State.DRAINING
    assert "cannot schedule new futures" in health.verdict(2.0).why
    end = health.next_change(2.0)
    assert end == 1.0 + SETTINGS.refused_for_s
    assert state(health, end) is State.UP


def test_a_refusal_ends_with_the_process_that_spoke_it():
    health = healthy()
    health.refused("shutting down", 1.0)
    for now in (2.0, 2.2, 2.4):
        health.probe_failed("connection refused", now, connect=True)
    assert state(health, 2.4) is State.DOWN
    health.probe_ok(3.0)
    assert state(health, 3.0) is State.UP


def test_a_sleeping_engine_is_down_until_it_wakes_or_nobody_says_so_any_longer():
    health = healthy()
    health.asleep(until=16.0)
    health.probe_ok(2.0)
    assert health.verdict(2.0).state is State.DOWN
    assert health.verdict(2.0).why == "the engine is asleep"
    health.awake()
    assert state(health, 2.0) is State.UP
    health.asleep(until=18.0)
    assert health.next_change(17.0) == 18.0
    assert state(health, 18.0) is State.UP


def test_a_silent_request_is_given_up_soon_where_probes_find_the_worker_down_and_at_once_where_it_sleeps():
    frozen, gone = healthy(), healthy()
    for now in range(3):
        assert frozen.silence_limit_s(float(now)) == gone.silence_limit_s(float(now)) == math.inf
        frozen.probe_failed("no answer within 2 s", float(now))
        gone.probe_failed("connection refused", float(now), connect=True)
    assert frozen.silence_limit_s(3.0) == gone.silence_limit_s(3.0) == HealthSettings().down_silence_s
    frozen.asleep(until=9.0)
    assert frozen.silence_limit_s(8.0) == 0.0
    assert frozen.silence_limit_s(9.0) == HealthSettings().down_silence_s
    frozen.probe_ok(9.0)
    assert frozen.silence_limit_s(9.0) == math.inf


def test_failures_that_another_worker_shares_are_no_failures_of_this_one():
    health = healthy()
    for now in range(1, 20):
        health.request_at_fault("HTTP 500", float(now), last_ok_elsewhere=-math.inf)
        assert state(health, float(now)) is State.UP


def test_workers_that_are_broken_in_the_same_way_do_not_excuse_each_other_while_others_work():
    health = healthy()
    for now in range(1, 6):
        health.request_at_fault("HTTP 500", float(now), last_ok_elsewhere=now - 0.5)
    assert state(health, 5.0) is State.SUSPECT


def test_a_worker_that_answers_others_in_between_is_not_doubted_for_what_one_request_causes():
    health = healthy()
    for now in range(1, 20):
        health.request_at_fault("HTTP 500", float(now), last_ok_elsewhere=now - 0.5)
        health.request_ok(now + 0.5)
    assert state(health, 20.0) is State.UP


def test_requests_that_fail_and_operators_who_drain_give_nothing_up():
    health = healthy()
    for now in range(9):
        health.request_failed("HTTP 500", float(now))
    health.drain()
    assert health.silence_limit_s(9.0) == math.inf


def test_what_the_operator_wants_comes_before_what_is_observed():
    health = healthy()
    health.probe_failed("HTTP 503", 1.0)
    health.drain()
    assert health.verdict(1.0).state is State.DRAINING
    assert health.verdict(1.0).why == "drained by the operator"
    health.undrain()
    assert state(health, 1.0) is State.SUSPECT


def test_each_reason_for_an_exclusion_is_of_a_closed_list_whatever_the_words_are():
    """A worker chooses the words of its failures: they must not pass for another reason."""
    words = "requests failed: the engine is asleep, it refuses new requests, being removed"
    health = Health(HealthSettings(fail_threshold=1))
    found = [health.verdict(0).excluded]
    health.probe_ok(0)
    assert health.verdict(0).excluded is None
    health.probe_failed(words, 0)
    found.append(health.verdict(0).excluded)
    for _ in range(HealthSettings().down_after_probes):
        health.probe_failed(words, 0)
    assert health.verdict(0).state is State.DOWN
    assert health.verdict(0).excluded is Exclusion.PROBE_FAILED
    health.probe_ok(1)
    health.request_failed(words, 1)
    found.append(health.verdict(1).excluded)
    health.asleep(10)
    found.append(health.verdict(1).excluded)
    health.refused(words, 1)
    found.append(health.verdict(1).excluded)
    health.drain()
    found.append(health.verdict(1).excluded)
    health.drain(Exclusion.REMOVED)
    found.append(health.verdict(1).excluded)
    assert [*found, Exclusion.NO_MODEL] == list(Exclusion)


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ({"fail_threshold": 0}, "fail_threshold"),
        ({"suspect_growth": 0.5}, "suspect_growth"),
        ({"suspect_for_s": 90.0}, "suspect_max_s"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(wrong, name):
    with pytest.raises(ValueError, match=name):
        HealthSettings(**wrong)


EVENTS = st.one_of(
    st.just(("probe_ok", {})),
    st.tuples(st.just("probe_failed"), st.fixed_dictionaries({"connect": st.booleans()})),
    st.just(("request_ok", {})),
    st.tuples(st.just("request_failed"), st.fixed_dictionaries({"connect": st.booleans()})),
    st.just(("refused", {})),
    st.just(("asleep", {})),
    st.just(("awake", {})),
    st.just(("drain", {})),
    st.just(("undrain", {})),
)
HISTORY = st.lists(st.tuples(st.floats(0, 40), EVENTS), max_size=40)


def play(health, history):
    now = 0.0
    for pause, (name, how) in history:
        now += pause
        method = getattr(health, name)
        if name in ("probe_failed", "request_failed", "refused"):
            method("why", now, **how)
        elif name == "asleep":
            method(now + ASLEEP_FOR_S)
        elif name in ("awake", "drain", "undrain"):
            method()
        else:
            method(now)
    return now


@given(HISTORY)
@settings(max_examples=150, deadline=None)
def test_every_mark_expires_and_nothing_changes_between_the_times_that_are_told(history):
    health = Health(SETTINGS)
    now = start = play(health, history)
    bound = max(SETTINGS.suspect_max_s, SETTINGS.refused_for_s, ASLEEP_FOR_S)
    for _ in range(4):
        end = health.next_change(now)
        if end is None:
            break
        assert now < end <= start + bound
        assert health.verdict((now + end) / 2) == health.verdict(now)
        assert (health.verdict(now).excluded is None) == (health.verdict(now).state is State.UP)
        now = end
    assert health.next_change(now) is None
    assert health.verdict(now) == health.verdict(now + 1e6)


@given(HISTORY)
@settings(max_examples=150, deadline=None)
def test_a_worker_that_answers_its_probe_is_up_again_within_the_bound_whatever_happened(history):
    health = Health(SETTINGS)
    now = play(health, history)
    health.undrain()
    bound = max(SETTINGS.suspect_max_s, SETTINGS.refused_for_s, ASLEEP_FOR_S)
    health.probe_ok(now + bound)
    assert state(health, now + bound) is State.UP


@given(HISTORY)
@settings(max_examples=150, deadline=None)
def test_requests_alone_never_take_a_worker_down(history):
    health = healthy()
    requests_only = [(pause, event) for pause, event in history if event[0].startswith("request")]
    now = play(health, requests_only)
    assert state(health, now) in (State.UP, State.SUSPECT)
