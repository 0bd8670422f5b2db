"""Counters are taken and given back exactly; the view follows; speed and slots are learned from what is seen."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.fleet.kv_fit import Member
from policies.fleet.speed import Profile
from policies.fleet.worker import STALLED_S, Attempt, Worker
from policies.model import Placement, PrefixKey, Reading, RequestView, WorkerFacts

LINES = frozenset({"base"})


def facts(**fields):
    return WorkerFacts("a", LINES, **fields)


def make_worker(*, window_tokens=None, window_s=0.2, kv_margin=0.0, **fields):
    return Worker(facts(**fields), window_s=window_s, window_tokens=window_tokens, kv_margin=kv_margin)


def make_attempt(tokens=100, *, now=0.0, sequences=1, expected=50, streams=True, key=b"x", prefill=None):
    request = RequestView(
        id="r",
        client="anna",
        served_name="base",
        key=PrefixKey(key),
        input_tokens=tokens,
        expected_output_tokens=expected,
        arrived=now,
        sequences=sequences,
        streams=streams,
    )
    return Attempt(request, Placement("a", prefill), tokens, now, prefiller=None, decoder=None, matches={})


def start(worker, one, now=0.0):
    worker.start_prefill(one, now)
    worker.start_sequences(one)
    return one


def first_token(worker, one, now):
    worker.end_prefill(one, now, finished=True)
    one.prefilling, one.first_token_at = False, now
    worker.start_decode(one)


def end(worker, one, now=0.0):
    if one.prefilling:
        worker.end_prefill(one, now, finished=False)
    worker.end_sequences(one, 1.0)


def counters(worker):
    return (
        worker.requests,
        worker.sequences,
        worker.prefills,
        worker.prefill_owed,
        worker.decode_tokens,
        worker.reserved,
    )


def test_an_attempt_is_counted_while_it_runs():
    worker = make_worker()
    one = start(worker, make_attempt(100, sequences=2, expected=50))
    assert counters(worker) == (1, 2, 1, 100, 0, 100)
    first_token(worker, one, 0.1)
    assert counters(worker) == (1, 2, 0, 0, 200, 100)
    worker.record_output(one, 30)
    assert counters(worker) == (1, 2, 0, 0, 230, 100)
    end(worker, one)
    assert counters(worker) == (0, 0, 0, 0, 0, 0)
    assert worker.idle


def test_an_answer_longer_than_expected_reserves_what_it_occupies():
    worker = make_worker(kv_tokens=1000)
    one = start(worker, make_attempt(100, expected=50))
    first_token(worker, one, 0.1)
    worker.record_output(one, 80)
    assert worker.view().room.kv_free == 1000 - 80
    worker.expect_output_tokens(one, 120)
    assert (worker.view().room.kv_free, one.remaining) == (1000 - 120, 40)
    worker.expect_output_tokens(one, 60)
    assert (worker.view().room.kv_free, one.remaining) == (1000 - 80, 0)
    end(worker, one)
    assert worker.view().room.kv_free == 1000


def test_what_is_free_now_is_what_prompts_and_answers_do_not_hold_yet():
    worker = make_worker(kv_tokens=1000, kv_margin=0.1)
    one = start(worker, make_attempt(100, expected=50))
    worker.set_pinned(100)
    first_token(worker, one, 0.1)
    worker.record_output(one, 30)
    room = worker.view().room
    assert (room.kv_free, room.kv_now) == (900 - 150, 900 - 130)
    end(worker, one)
    worker.set_pinned(0)
    assert worker.view().room.kv_now == 900


def test_a_prompt_that_no_prefix_tree_knows_is_counted_all_the_same():
    worker = make_worker(kv_tokens=1000)
    one = start(worker, make_attempt(100, expected=50, key=b""))
    assert (worker.view().kv_reserved, worker.view().room.kv_now) == (150, 900)
    end(worker, one)
    assert (worker.view().kv_reserved, worker.view().room.kv_now) == (0, 1000)


def test_what_is_in_flight_on_a_worker_that_left_and_came_back_still_occupies_its_memory():
    """The prefix trees have forgotten the worker and its pins; the engine has not forgotten the prompts."""
    worker = make_worker(kv_tokens=1000)
    one, other = (
        start(worker, make_attempt(100, expected=50)),
        start(worker, make_attempt(30, expected=5, key=b"")),
    )
    worker.set_pinned(100)
    worker.leave()
    assert worker.view().kv_reserved == 100 + 50 + 30 + 5
    worker.leave()
    new = start(worker, make_attempt(200, expected=1))
    worker.set_pinned(200)
    assert worker.view().kv_reserved == 100 + 50 + 30 + 5 + 200 + 1
    for ended, pinned in ((one, 200), (other, 200), (new, 0)):
        end(worker, ended)
        worker.set_pinned(pinned)
    assert (worker.view().kv_reserved, len(worker._unpinned)) == (0, 0)


def test_room_is_asked_of_answers_as_far_as_they_have_come():
    """100 + 50 and 100 + 40 tokens never are there together: the first ends 20 steps from now."""
    worker = make_worker(kv_tokens=270)
    one = start(worker, make_attempt(100, expected=50))
    worker.set_pinned(100)
    first_token(worker, one, 0.1)
    assert not worker.view().admits(make_attempt(100, expected=50).request, 0)
    worker.record_output(one, 30)
    before = worker.view().room.batch
    assert worker.view().admits(make_attempt(100, expected=40).request, 0)
    worker.record_output(one, 10)
    worker.expect_output_tokens(one, 200)
    assert not worker.view().admits(make_attempt(100, expected=40).request, 0)
    assert before.fits(Member(100, 0, 40)), "a view stays what it was"


# -- pairs


def test_the_prompt_of_a_pair_is_held_by_the_prefill_worker_until_it_is_done():
    worker = make_worker(kv_tokens=1000, slots=1)
    one = make_attempt(100, prefill="p")
    worker.start_prefill(one, 0.0)
    worker.start_prompt(one)
    worker.set_pinned(100)
    assert counters(worker) == (1, 0, 1, 100, 0, 0)
    room = worker.view().room
    assert (room.slots_free, room.kv_free, room.kv_now, worker.idle) == (1, 900, 900, False)
    worker.end_prefill(one, 0.5, finished=True)
    worker.end_prompt(one)
    worker.set_pinned(0)
    assert counters(worker) == (0, 0, 0, 0, 0, 0)
    assert worker.idle
    assert worker.view().room.kv_now == 1000


def test_the_end_of_a_pairs_prefill_teaches_even_if_the_answer_is_not_streamed():
    worker = make_worker()
    for _ in range(60):
        one = make_attempt(1000, streams=False, prefill="p")
        worker.start_prefill(one, 0.0)
        worker.end_prefill(one, 0.5, finished=True)
    assert worker.profile.prefill_s(1000) == pytest.approx(0.5, rel=0.1)


@pytest.mark.parametrize("streams", [True, False])
def test_the_answer_of_a_pair_teaches_nothing_of_prefill(streams):
    worker = make_worker()
    before = worker.profile.prefill_s(1000)
    for _ in range(60):
        one = make_attempt(1000, streams=streams, prefill="p")
        one.prefilled_at = 7.0
        one.first_token_at = 8.0 if streams else 7.0
        worker.learn_from_answer(one, 101, one.first_token_at + 2.0)
    assert worker.profile.prefill_s(1000) == before
    assert worker.profile.step_s() == pytest.approx(0.02, rel=0.05)


# -- signs of life


def test_silence_is_a_stall_only_while_something_is_due_and_not_before_its_time():
    worker = make_worker()
    one = start(worker, make_attempt(1000), 10.0)
    assert worker.stalls_at() == 10.0 + STALLED_S
    assert not worker.update_stalled(14.9)
    assert not worker.stalled
    assert worker.update_stalled(15.0)
    assert worker.view().stalled
    worker.record_response(15.5)
    assert worker.update_stalled(15.5)
    assert not worker.view().stalled
    assert worker.stalls_at() == 15.5 + STALLED_S
    first_token(worker, one, 16.0)
    assert worker.stalls_at() == float("inf")


def test_a_slow_worker_is_given_ten_times_what_its_prefill_takes():
    worker = make_worker()
    worker.profile = Profile(base_s=0.0, per_token_s=0.01, per_pair_s=1e-12)
    start(worker, make_attempt(200), 0.0)
    assert worker.stalls_at() == pytest.approx(20.0, rel=0.01)


def test_a_first_token_that_nobody_sees_is_not_due():
    worker = make_worker()
    start(worker, make_attempt(1000, streams=False), 0.0)
    assert worker.stalls_at() == float("inf")


def test_silence_begins_when_something_is_due_not_before():
    worker = make_worker()
    one = start(worker, make_attempt(10), 0.0)
    first_token(worker, one, 0.1)
    start(worker, make_attempt(10), 100.0)
    start(worker, make_attempt(10), 103.0)
    assert worker.stalls_at() == 100.0 + STALLED_S


EVENTS = st.lists(st.tuples(st.sampled_from(["start", "first", "output", "end"]), st.integers(0, 5)), max_size=80)


@settings(max_examples=60)
@given(EVENTS, st.integers(1, 4), st.booleans())
def test_whatever_the_order_every_counter_returns_to_zero(events, sequences, streams):
    worker, running, now = make_worker(kv_tokens=5000), [], 0.0
    for kind, which in events:
        now += 0.3
        if kind == "start":
            running.append(
                start(worker, make_attempt(10 + which, now=now, sequences=sequences, streams=streams), now)
            )
        elif running:
            one = running[which % len(running)]
            if kind == "first" and one.prefilling:
                first_token(worker, one, now)
            elif kind == "output" and not one.prefilling:
                worker.record_output(one, 17 * which)
            elif kind == "end":
                running.remove(one)
                end(worker, one, now)
        assert min(counters(worker)) >= 0
        assert worker.requests == len(running)
        assert worker.prefill_owed == sum(one.extend_tokens for one in running if one.prefilling)
    for one in running:
        end(worker, one, now)
    assert counters(worker) == (0, 0, 0, 0, 0, 0)
    assert (
        worker._unseen_prefills,
        worker.responses_due,
        worker._answers,
        worker._unkeyed,
        len(worker._occupants),
    ) == (0,) * 5


def test_the_view_stays_the_same_object_until_something_changes():
    worker = make_worker()
    before = worker.view()
    assert worker.view() is before
    start(worker, make_attempt())
    assert worker.view() is not before


def test_the_view_tells_what_is_in_flight():
    worker = make_worker(slots=4, kv_tokens=1000, window_tokens=300)
    start(worker, make_attempt(100, sequences=3, expected=50))
    worker.set_pinned(100)
    view = worker.view()
    assert (view.requests, view.sequences, view.prefill_owed, view.kv_reserved) == (1, 3, 100, 250)
    room = view.room
    assert (room.idle, room.prefill_idle, room.prefill_free) == (False, False, 200)
    assert (room.slots_free, room.kv_free) == (1, 750)
    row = worker.view()
    assert (row.sequences, row.room.slots_free, row.room.prefill_free, row.kv_reserved) == (3, 1, 200, 250)


def test_the_window_is_a_time_by_the_profile_but_at_most_one_batch():
    worker, small = make_worker(), make_worker(max_batched_tokens=512)
    for one in (worker, small):
        served(one, 0.05)
    window, profile = worker.prefill_window(), worker.profile
    assert profile.prefill_s(window) - profile.per_pair_s * window * window / 2 <= 0.2
    assert window == profile.prefill_tokens(0.2 - profile.base_s) > 512
    assert small.prefill_window() == 512
    assert make_worker(max_batched_tokens=512, window_tokens=9000).prefill_window() == 9000


def test_as_many_prompts_are_in_flight_as_a_slow_way_takes_steps():
    """Each prompt's first token is heard of after 0.4 s, of which an engine's step is a small part."""
    worker, now = make_worker(slots=8), 0.0
    for _ in range(40):
        now += 10.0
        one = start(worker, make_attempt(30, now=now), now)
        first_token(worker, one, now + 0.4)
        end(worker, one)
    profile = worker.profile
    assert profile.base_s > 0.2 > 10 * profile.step_s()
    for _ in range(3):
        assert worker.view().admits(make_attempt(30).request, 0)
        start(worker, make_attempt(30, now=now), now)


def test_steps_that_take_long_by_themselves_are_no_reason_for_more_prompts_in_flight():
    slow, way = (
        dataclasses.replace(Profile(), base_s=0.3, per_token_s=1e-3, step_base_s=step_s, prefills=99, decodes=99)
        for step_s in (0.29, 0.01)
    )
    worker = make_worker()
    worker.profile = slow
    assert worker.prefill_window() < 20
    worker.profile = way
    assert worker.prefill_window() > 250


def test_one_prompt_is_in_flight_while_nothing_is_known_of_a_workers_speed():
    worker = make_worker()
    assert worker.prefill_window() == 0
    one = start(worker, make_attempt(10), 0.0)
    assert not worker.view().admits(make_attempt(10).request, 0)
    first_token(worker, one, 0.05)
    assert worker.prefill_window() > 0


# -- when room is expected


def test_room_is_expected_when_the_prefill_in_flight_is_done():
    worker = make_worker()
    start(worker, make_attempt(1000), 5.0)
    assert worker.view().room.expected_at == pytest.approx(5.0 + worker.profile.prefill_s(1000))


def test_prompts_started_together_are_expected_as_one_batch():
    worker = make_worker()
    for _ in range(50):
        start(worker, make_attempt(10), 5.0)
    assert worker.prefill_due == pytest.approx(5.0 + worker.profile.prefill_s(500))


def test_a_slot_is_expected_when_the_shortest_answer_in_flight_should_end():
    worker = make_worker(slots=2)
    worker.profile = Profile(prefills=1, decodes=1)
    for expected in (100, 40):
        first_token(worker, start(worker, make_attempt(10, expected=expected), 0.0), 1.0)
    worker.record_response(1.0)
    step = worker.profile.step_s(2, worker.decode_tokens)
    assert worker.view().room.expected_at == pytest.approx(1.0 + 40 * step)


def test_room_is_not_expected_later_and_later_on_a_worker_that_is_never_idle():
    """Each prompt is answered before the next but one arrives; what was predicted too long must not add up."""
    worker, now = make_worker(), 0.0
    worker.profile = Profile(base_s=0.05, prefills=10**9, decodes=10**9)
    before = start(worker, make_attempt(10, streams=False))
    for _ in range(500):
        now += 0.01
        after = start(worker, make_attempt(10, now=now, streams=False), now)
        first_token(worker, before, now)
        end(worker, before, now)
        before = after
    assert worker.prefill_due - now <= worker.profile.prefill_s(20)


def test_room_for_a_request_is_expected_by_what_is_missing_for_it():
    """Prefill is done in a moment, the first slot is free in 40 steps, both in 100, much KV in 100."""
    worker = make_worker(slots=2, kv_tokens=400)
    for expected in (100, 40):
        one = start(worker, make_attempt(100, expected=expected), 0.0)
        worker.set_pinned(worker.pinned + 100)
        first_token(worker, one, 1.0)
    worker.record_response(1.0)
    step, view = worker.view().room.step_s, worker.view()
    assert view.room_expected_at(make_attempt(10).request, 0) == pytest.approx(1.0 + 40 * step)
    assert view.room_expected_at(make_attempt(10, sequences=2).request, 0) == pytest.approx(1.0 + 100 * step)
    assert view.room_expected_at(make_attempt(250).request, 0) == pytest.approx(1.0 + 100 * step)


def test_room_on_a_worker_without_memory_is_expected_when_the_answer_that_has_it_ends():
    """The prefill has long been done; seconds of decoding are still to come."""
    worker = make_worker(kv_tokens=2000)
    one = start(worker, make_attempt(900, expected=1100), 0.0)
    worker.set_pinned(900)
    first_token(worker, one, 0.1)
    worker.record_response(0.1)
    view = worker.view()
    small = make_attempt(500, expected=500).request
    assert not view.admits(small, 0)
    assert view.room_expected_at(small, 0) == pytest.approx(0.1 + 1100 * view.room.step_s)
    assert view.room_expected_at(make_attempt(5, expected=5).request, 0) == 0.0, "it fits now"
    end(worker, one)
    assert worker.view().room_expected_at(small, 0) == 0.0


def test_a_worker_with_no_free_memory_expects_room_when_the_first_answer_ends():
    worker = make_worker(kv_tokens=100)
    first_token(worker, start(worker, make_attempt(100, expected=30, key=b""), 0.0), 0.5)
    worker.record_response(0.5)
    room = worker.view().room
    assert not room.open
    assert room.expected_at == pytest.approx(0.5 + 30 * room.step_s)


# -- requests that wait and are named to a worker


NAMED = st.lists(st.tuples(st.integers(0, 7), st.integers(1, 3), st.integers(0, 500)), max_size=30)


@given(NAMED)
def test_what_is_named_is_counted_until_it_is_unnamed(steps):
    """A name that is there already is taken back; in the end all are."""
    worker, named = make_worker(), {}
    start(worker, make_attempt(100))
    for which, sequences, tokens in [*steps, *((name, 1, 0) for name in range(8))]:
        worker.view()
        if which in named:
            worker.unname(*named.pop(which))
        elif (sequences, tokens) != (1, 0):
            named[which] = make_attempt(sequences=sequences).request, tokens
            worker.name(*named[which])
        view = worker.view()
        assert (view.named_requests, view.named_sequences, view.named_prefill_tokens) == (
            len(named),
            sum(request.sequences for request, _ in named.values()),
            sum(tokens for _, tokens in named.values()),
        )
        assert view == worker._view_of(worker._room()), "what is named changes nothing else"
    assert not named


def test_with_what_is_named_a_worker_looks_as_it_will_to_whoever_comes_after_that():
    worker = make_worker(slots=1, window_tokens=100)
    first_token(worker, start(worker, make_attempt(100), 0.0), 0.5)
    start(worker, make_attempt(60), 0.5)
    plain = worker.view()
    assert worker.view_with_named(1.0).load_s == plain.load_s
    worker.name(make_attempt(sequences=2).request, 300)
    view, profile = worker.view_with_named(1.0), worker.profile
    assert (view.requests, view.sequences, view.prefill_owed) == (3, 4, 360)
    ahead = profile.prefill_s(360) - profile.prefill_s(60)
    assert view.load_s == pytest.approx(plain.load_s + ahead + 2 * profile.step_s(4, 100))
    assert view.room.expected_at == pytest.approx(max(plain.room.expected_at, 1.0) + ahead)
    assert not plain.room.open
    assert view.admits(make_attempt(10**6, sequences=9).request, 0)


# -- learning


def served(worker, seconds, *, streams=True, rounds=60):
    now = 0.0
    for _ in range(rounds):
        one = start(worker, make_attempt(1000, now=now, streams=streams), now)
        now += seconds
        first_token(worker, one, now)
        end(worker, one, now)
        now += 1.0


def test_first_tokens_that_were_seen_teach_the_speed_of_prefill():
    worker = make_worker()
    served(worker, 0.5)
    assert worker.profile.prefill_s(1000) == pytest.approx(0.5, rel=0.1)


def test_first_tokens_that_were_only_predicted_teach_nothing():
    worker = make_worker()
    served(worker, 0.5, streams=False)
    assert worker.profile == Profile()


def test_first_tokens_that_come_in_one_burst_teach_as_one():
    """An engine step computes several prompts; with another one in flight the period would not end by itself."""
    worker, now = make_worker(), 0.0
    running = [start(worker, make_attempt(1000), now)]
    for _ in range(30):
        running += [start(worker, make_attempt(1000), now) for _ in range(3)]
        now += 2.0  # four prompts, half a second each
        for number, one in enumerate(running[:4]):
            first_token(worker, one, now + number * 1e-4)
            end(worker, one, now + number * 1e-4)
        running = running[4:] or [start(worker, make_attempt(1000), now)]
    assert worker.profile.prefill_s(1000) == pytest.approx(0.5, rel=0.35)


def test_a_predicted_first_token_in_a_long_busy_period_teaches_nothing_either():
    """After a second a period is cut in two; the second part must not forget that a stream is missing."""
    worker = make_worker()
    unseen = start(worker, make_attempt(1000, streams=False), 0.0)
    seen = start(worker, make_attempt(1000), 0.0)
    first_token(worker, seen, 2.0)
    first_token(worker, unseen, 2.5)
    assert worker.profile == Profile()


def test_a_prompt_that_was_never_computed_teaches_nothing():
    worker = make_worker()
    one = start(worker, make_attempt(1000), 0.0)
    end(worker, one, 30.0)
    assert worker.profile == Profile()


def test_a_streamed_answer_teaches_the_speed_of_decoding():
    worker = make_worker()
    for _ in range(60):
        one = make_attempt(100)
        one.first_token_at = 1.0
        worker.learn_from_answer(one, 101, 3.0)
    assert worker.profile.step_s() == pytest.approx(0.02, rel=0.05)


def test_a_whole_answer_teaches_both_speeds():
    worker = make_worker()
    for _ in range(60):
        worker.learn_from_answer(make_attempt(1000, streams=False), 100, 5.0)
    assert worker.profile.prefill_s(1000) + worker.profile.decode_s(100) == pytest.approx(5.0, rel=0.05)


# -- slots


def told(worker, at, running, waiting):
    worker.update_facts(facts(reading=Reading(at, running, waiting)))
    return worker.view().room.slots_free


def test_slots_are_unbounded_until_requests_wait_inside_the_engine_twice_in_a_row():
    worker = make_worker()
    assert told(worker, 1.0, 8, 3) is None
    assert told(worker, 2.0, 8, 0) is None
    assert told(worker, 3.0, 8, 3) is None
    assert told(worker, 4.0, 7, 3) == 8


def test_a_reading_counts_once():
    worker = make_worker()
    assert told(worker, 1.0, 8, 3) is None
    assert told(worker, 1.0, 8, 3) is None


def test_a_bound_that_was_reached_without_anybody_waiting_is_probed_upwards():
    worker = make_worker()
    told(worker, 1.0, 8, 3)
    told(worker, 2.0, 8, 3)
    assert told(worker, 3.0, 8, 0) == 8
    attempts = [start(worker, make_attempt(1)) for _ in range(8)]
    assert told(worker, 4.0, 8, 0) == 2
    for one in attempts:
        end(worker, one)
    assert told(worker, 5.0, 0, 0) == 10


def test_a_configured_number_of_slots_is_not_learned_over():
    worker = make_worker(slots=4)
    for at in (1.0, 2.0):
        worker.update_facts(facts(slots=4, reading=Reading(at, 9, 5)))
    assert worker.view().room.slots_free == 4


def test_an_engine_with_requests_waiting_and_none_running_still_has_a_slot():
    worker = make_worker()
    told(worker, 1.0, 0, 3)
    assert told(worker, 2.0, 0, 3) == 1
