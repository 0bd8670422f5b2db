"""Nobody is asked twice for nothing, and everybody is asked again when it may help."""

import pytest

from policies.fleet.fleet import Fleet
from policies.knowledge import Knowledge
from policies.model import (
    Candidate,
    Dispatch,
    Hold,
    Place,
    Placement,
    PrefixKey,
    Reason,
    RequestView,
    Stage,
    Usage,
    WorkerFacts,
)
from policies.orders.fcfs import Fcfs, Settings
from policies.prefixes.index import Prefixes
from policies.scheduler.matching import _has_room
from policies.scheduler.refusals import Refusals
from policies.scheduler.scheduler import Scheduler, SchedulerSettings

WINDOW = 100


class Counting:
    """Takes the first worker that admits the request, or waits for a favourite; counts how often it is asked."""

    hears = frozenset()

    def __init__(self, hold_for=None):
        self.asked = []
        self.hold_for = hold_for

    def choose(self, request, matches, workers, now):
        self.asked.append(request.id)
        if request.id == self.hold_for:
            return Hold("a", now + 1.0)
        for worker in workers:
            if worker.admits(request, matches.get(worker.id, 0)):
                return Place(Placement(worker.id), Reason.LOAD)
        return None

    def on(self, event):
        pass


def request(name, tokens=80, **fields):
    values = {"key": PrefixKey(), "arrived": 0.0, **fields}
    return RequestView(
        id=name,
        client="anna",
        served_name="m",
        input_tokens=tokens,
        expected_output_tokens=5,
        streams=True,
        **values,
    )


def scheduler(placement, *workers, **fields):
    settings = SchedulerSettings(prefill_window_tokens=WINDOW, **fields)
    made = Scheduler(Fcfs(Settings()), placement, settings, Knowledge())
    for name in workers:
        made.worker_joined(WorkerFacts(name, frozenset({"m"})), 0.0)
    return made


def started(made, now=0.0):
    return [d.request.id for d in made.decisions(now) if isinstance(d, Dispatch)]


def test_who_had_no_room_is_not_asked_again_while_nothing_has_ended():
    placement = Counting()
    made = scheduler(placement, "a")
    made.submit(request("runs"), 0.0)
    assert started(made) == ["runs"]
    made.submit(request("waits"), 0.0)
    assert started(made) == []
    made.submit(request("comes later", arrived=0.1), 0.1)
    assert started(made, 0.1) == []
    assert placement.asked == ["runs", "waits"]


def test_who_had_no_room_is_asked_when_a_prefill_is_done():
    placement = Counting()
    made = scheduler(placement, "a")
    ticket = made.submit(request("runs"), 0.0)
    started(made)
    made.submit(request("waits"), 0.0)
    started(made)
    made.first_token(ticket, 0.1)
    assert started(made, 0.1) == ["waits"]


def test_who_had_no_room_is_asked_when_a_worker_comes_to_hold_its_prefix():
    """Its prompt is then short enough for the window that is left."""
    placement, prompt = Counting(), PrefixKey(b"p" * 80, 1, 1.0)
    made = scheduler(placement, "a")
    made.submit(request("runs", 30), 0.0)
    assert started(made) == ["runs"]
    waiting = made.submit(request("waits", 80, key=prompt), 0.0)
    assert started(made) == []
    assert placement.asked.count("waits") == 1
    pinned = made.prefixes.insert("a", request("other", 80, key=prompt), 0.1)
    assert started(made, 0.1) == ["waits"]
    made.prefixes.release(pinned, 0.2)
    made.settled(waiting, Usage(80, 5), 0.3)


def test_who_holds_is_asked_again_when_its_wait_is_over_or_something_has_ended():
    placement = Counting(hold_for="waits")
    made = scheduler(placement, "a", "b")
    ticket = made.submit(request("runs"), 0.0)
    assert started(made) == ["runs"]
    made.submit(request("waits"), 0.0)
    assert started(made) == []
    made.submit(request("passes", arrived=0.1), 0.1)
    assert started(made, 0.1) == ["passes"]
    assert placement.asked.count("waits") == 1
    assert made.next_deadline() == pytest.approx(1.0)
    made.first_token(ticket, 0.2)
    assert started(made, 0.2) == []
    assert placement.asked.count("waits") == 2
    assert started(made, 1.2) == []
    assert placement.asked.count("waits") == 3


def test_who_holds_is_asked_again_when_somebody_else_was_placed_where_it_waits():
    """Its wait is longer then. Elsewhere it makes no difference."""
    placement = Counting(hold_for="waits")
    made = scheduler(placement, "a", "b")
    made.submit(request("waits", 80), 0.0)
    assert started(made) == []
    made.submit(request("small", 20, arrived=0.1, pinned="b"), 0.1)
    assert started(made, 0.1) == ["small"]
    assert placement.asked.count("waits") == 1
    made.submit(request("there", 20, arrived=0.2, pinned="a"), 0.2)
    assert started(made, 0.2) == ["there"]
    assert started(made, 0.2) == []
    assert placement.asked.count("waits") == 2


def test_who_holds_is_asked_again_when_its_prompt_has_come_to_another_worker():
    placement, prompt = Counting(hold_for="waits"), PrefixKey(b"p" * 80, 1, 1.0)
    made = scheduler(placement, "a", "b")
    made.submit(request("waits", 80, key=prompt), 0.0)
    assert started(made) == []
    made.submit(request("unlike it", 20, arrived=0.1, key=PrefixKey(b"q" * 20, 1, 1.0), pinned="b"), 0.1)
    assert started(made, 0.1) == ["unlike it"]
    assert started(made, 0.1) == []
    assert placement.asked.count("waits") == 1
    made.submit(request("like it", 80, arrived=0.2, key=prompt, pinned="b"), 0.2)
    assert started(made, 0.2) == ["like it"]
    assert started(made, 0.2) == []
    assert placement.asked.count("waits") == 2


def test_nobody_behind_it_passes_a_request_that_has_no_room():
    made = scheduler(Counting(), "a")
    made.submit(request("runs", 30), 0.0)
    assert started(made) == ["runs"]
    made.submit(request("large", 90), 0.0)
    made.submit(request("small", 10, arrived=0.1), 0.1)
    assert started(made, 0.1) == []


def test_who_holds_back_lets_others_pass_for_so_long_as_the_queue_is_patient():
    made = scheduler(Counting(hold_for="waits"), "a", "b")
    made.submit(request("waits"), 0.0)
    made.submit(request("early", arrived=0.5), 0.5)
    assert started(made, 0.5) == ["early"]
    made.submit(request("late", 10, arrived=1.5), 1.5)
    assert started(made, 1.5) == []


def refusals():
    fleet, prefixes = Fleet(0.2, WINDOW), Prefixes()
    for name in ("a", "b"):
        fleet.update_facts(WorkerFacts(name, frozenset({"m"})))
    return Refusals(fleet, prefixes, _has_room), fleet


def test_a_refusal_stands_only_where_as_many_workers_are_kept_off():
    made, _ = refusals()
    one = request("one")
    made.holds(Candidate(one, frozenset({"a"})), {}, Hold("a", 9.0), {})
    assert made.stands(Candidate(one, frozenset({"a", "b"})), 0.0)
    assert not made.stands(Candidate(one), 0.0)


def test_whoever_has_left_is_forgotten():
    made, _ = refusals()
    made.no_room(Candidate(request("one")), {})
    made.forget(request("one"))
    assert made._told == {}


def test_any_change_of_who_is_there_is_a_reason_to_ask():
    made, fleet = refusals()
    one = request("one")
    made.holds(Candidate(one), {}, Hold("a", 9.0), {})
    fleet.remove("b")
    assert not made.stands(Candidate(one), 0.0)


def test_a_worker_that_changes_its_stages_is_a_reason_to_ask_about_all_others():
    """A decode worker is none of a pair any more when the last prefill worker takes to whole requests."""
    made = scheduler(Counting(), "b")
    made.worker_joined(WorkerFacts("a", frozenset({"m"}), stages=frozenset({Stage.PREFILL})), 0.0)
    refused, candidate = made._chooser._refusals, Candidate(request("waits"))
    refused.no_room(candidate, {})
    made.worker_changed(WorkerFacts("a", frozenset({"m"})), 0.0)
    made.submit(request("fills it", 100, pinned="a"), 0.0)
    assert started(made) == ["fills it"]
    assert not refused.stands(candidate, 0.2)


def test_an_answer_that_grows_is_a_reason_to_look_whether_there_is_room():
    """Its end is nearer, so that a batch may fit into KV memory into which it did not."""
    made = scheduler(Counting(), "a")
    ticket = made.submit(request("runs"), 0.0)
    started(made)
    made.first_token(ticket, 0.1)
    refused, candidate = made._chooser._refusals, Candidate(request("waits"))
    refused.no_room(candidate, {})
    assert refused.stands(candidate, 0.2)
    made.output(ticket, 3, 0.2)
    assert not refused.stands(candidate, 0.2)
