"""What a request in the queue waits for is noted, for whoever asks why."""

from dataclasses import replace

import pytest
from views import OPEN, full, request, worker

from policies.fleet.capacity import Room
from policies.fleet.obstacle import Obstacle
from policies.model import Dispatch, Reason, Reject, Stage, WorkerFacts
from policies.orders.fcfs import Fcfs
from policies.orders.fcfs import Settings as FcfsSettings
from policies.placements.least_loaded import LeastLoaded
from policies.placements.least_loaded import Settings as LeastLoadedSettings
from policies.scheduler.matching import _rated
from policies.scheduler.scheduler import Scheduler, SchedulerSettings
from policies.scheduler.waits import Waits, easiest

WINDOW = Room(idle=False, prefill_idle=False, prefill_free=0, slots_free=4, kv_free=9999)
SLOT = Room(idle=False, prefill_idle=False, prefill_free=0, slots_free=0, kv_free=9999)
KV = Room(idle=False, prefill_idle=False, prefill_free=0, slots_free=0, kv_free=10)
ASKS = request(tokens=1000)


def least(*rooms, blocked=()):
    return easiest(ASKS, [worker(f"w{number}", room=room) for number, room in enumerate(rooms)], set(blocked))


@pytest.mark.parametrize(
    ("room", "obstacle"), [(WINDOW, Obstacle.PREFILL_WINDOW), (SLOT, Obstacle.SLOT), (KV, Obstacle.KV)]
)
def test_of_what_a_worker_lacks_the_hardest_to_come_is_named(room, obstacle):
    assert least(room) is obstacle


def test_of_several_workers_the_one_that_lacks_least_says_what_a_request_waits_for():
    assert least(KV, SLOT, WINDOW) is Obstacle.PREFILL_WINDOW
    assert least(KV, SLOT) is Obstacle.SLOT


def test_room_that_is_left_to_others_is_their_turn():
    assert least(OPEN, KV, blocked=["w0"]) is Obstacle.TURN


def test_a_worker_that_only_prefills_lacks_no_slot():
    view = worker("w", room=replace(SLOT, decodes=False))
    assert easiest(ASKS, [view], set()) is Obstacle.PREFILL_WINDOW


def test_the_same_obstacle_is_one_wait_and_a_new_one_is_seen_after_a_second():
    waits, slot, kv = Waits(), [worker("w", room=SLOT)], [worker("w", room=KV)]
    for now, workers in ((1.0, slot), (1.5, kv), (2.5, slot), (4.0, kv)):
        waits.passed_over(ASKS, workers, set(), now)
    assert [(wait.since, wait.obstacle) for wait in waits.of(ASKS)] == [(1.0, Obstacle.SLOT), (4.0, Obstacle.KV)]


def test_what_follows_a_hold_is_noted_at_once():
    waits = Waits()
    waits.passed_over(ASKS, [worker("w", room=SLOT)], set(), 1.0)
    waits.held(ASKS, "better", 1.1)
    waits.passed_over(ASKS, [worker("w", room=KV)], set(), 1.2)
    assert [wait[1:] for wait in waits.of(ASKS)] == [
        (Obstacle.SLOT, None),
        (Obstacle.HOLD, "better"),
        (Obstacle.KV, None),
    ]


def test_a_request_has_at_most_sixteen_notes():
    waits = Waits()
    for now in range(100):
        waits.held(ASKS, f"w{now}", float(now))
    kept = waits.of(ASKS)
    assert (len(kept), kept[0].worker, kept[-1].worker) == (16, "w0", "w99")


# -- through the scheduler


def one_slot(*names, **settings):
    made = Scheduler(Fcfs(FcfsSettings()), LeastLoaded(LeastLoadedSettings()), SchedulerSettings(**settings))
    for name in names:
        made.worker_joined(WorkerFacts(name, frozenset({"base"}), frozenset(Stage), slots=1), 0.0)
    return made


def test_a_dispatch_says_what_it_waited_for_and_nothing_is_kept_behind_it():
    made = one_slot("w")
    first = made.submit(request("a"), 0.0)
    made.decisions(0.0)
    made.submit(request("b", arrived=1.0), 1.0)
    made.decisions(1.0)
    assert [wait.obstacle for wait in made.waits("b")] == [Obstacle.SLOT]
    made.cancel(first, 3.0)
    (started,) = made.decisions(3.0)
    assert isinstance(started, Dispatch)
    assert [(wait.since, wait.obstacle) for wait in started.waits] == [(1.0, Obstacle.SLOT)]
    assert made.waits("b") == ()
    assert not made._matcher.waits.notes


def test_in_a_full_fleet_a_request_waits_for_its_turn_until_the_last_before_it_has_started():
    made = one_slot("w")
    running = made.submit(request("a", arrived=0.0), 0.0)
    made.decisions(0.0)
    made.submit(request("b", arrived=1.0), 1.0)
    made.submit(request("c", arrived=1.0), 1.0)
    made.decisions(1.0)
    made.cancel(running, 5.0)
    (second,) = made.decisions(5.0)
    made.cancel(second.ticket, 7.0)
    (third,) = made.decisions(7.0)
    assert [(wait.since, wait.obstacle) for wait in second.waits] == [(1.0, Obstacle.SLOT)]
    assert [(wait.since, wait.obstacle) for wait in third.waits] == [(5.0, Obstacle.SLOT)]


def test_a_rejection_says_it_too():
    made = one_slot("w", max_wait_s=2.0)
    made.submit(request("a"), 0.0)
    made.decisions(0.0)
    made.submit(request("b", arrived=1.0), 1.0)
    made.decisions(1.0)
    (turned_away,) = made.decisions(9.0)
    assert isinstance(turned_away, Reject)
    assert [wait.obstacle for wait in turned_away.waits] == [Obstacle.SLOT]


def test_a_request_that_starts_at_once_waited_for_nothing():
    made = one_slot("w")
    made.submit(request("a"), 0.0)
    assert made.decisions(0.0)[0].waits == ()


def test_a_place_keeps_the_workers_it_was_chosen_from_and_why_better_ones_were_not_it():
    made = one_slot("v", "w")
    made.submit(request("a"), 0.0)
    made.submit(request("b"), 0.0)
    first, second = made.decisions(0.0)
    assert [(row[0], row[3]) for row in first.place.rated] == [("v", None), ("w", None)]
    assert {row[0] for row in second.place.rated} == {"v", "w"}
    assert second.place.rated[0][1] <= second.place.rated[1][1]


def test_a_better_worker_without_room_is_kept_with_what_it_lacked():
    better, taken = worker("better", room=SLOT), worker("taken")
    rows = _rated(
        ASKS, [(better, 0.0, Reason.HIT), (taken, 1.0, Reason.SPILL)], taken, {"better": 900}, frozenset()
    )
    assert rows == (("better", 0.0, 900, Obstacle.SLOT), ("taken", 1.0, 0, None))


def test_of_a_large_fleet_the_best_are_kept_and_the_one_that_was_taken():
    views = [worker(f"w{number}", room=full()) for number in range(50)]
    rows = _rated(ASKS, [(v, 1.0, Reason.LOAD) for v in views], views[49], {}, frozenset())
    assert [row[0] for row in rows] == [*(f"w{number}" for number in range(32)), "w49"]


def test_the_workers_can_be_looked_at_while_a_request_waits_without_any_effect():
    made = one_slot("v", "w")
    for name in ("a", "b"):
        made.submit(request(name), 0.0)
    made.decisions(0.0)
    made.submit(request("c"), 1.0)
    made.decisions(1.0)
    looks = [made.look("c", 1.0) for _ in range(3)]
    assert looks[0] == looks[2]
    assert {row[3] for row in looks[0]} == {Obstacle.SLOT}
    assert made.look("a", 1.0) is None
    assert made.snapshot().queued == 1
