"""Timers name only what is alive, in order, and their number follows what is alive down again."""

import math

from hypothesis import given
from hypothesis import strategies as st

from policies.model import Ticket
from policies.scheduler.timers import Timers


def ticket(number):
    return Ticket(f"r{number}", 1, number)


def made():
    requests = {}
    return Timers(lambda one: requests.get(one.request) == one, requests), requests


def test_after_a_peak_there_are_as_few_timers_as_requests():
    timers, requests = made()
    for number in range(20_000):
        requests[f"r{number}"] = ticket(number)
        timers.set(1e9, ticket(number))
    for number in range(19_990):
        del requests[f"r{number}"]
    for number in range(20_000, 21_000):
        requests[f"r{number}"] = ticket(number)
        timers.set(1e9, ticket(number))
        assert len(timers) <= 2 * len(requests) + 64
        del requests[f"r{number}"]


@given(st.lists(st.tuples(st.integers(0, 20), st.floats(0, 100) | st.just(math.inf), st.booleans())))
def test_what_is_due_comes_in_order_and_only_of_those_alive(steps):
    timers, requests, expected = *made(), []
    for number, (which, at, ends) in enumerate(steps):
        if ends:
            requests.pop(f"r{which}", None)
            expected = [one for one in expected if one[1].request != f"r{which}"]
        elif f"r{which}" not in requests:
            one = requests[f"r{which}"] = Ticket(f"r{which}", 1, number)
            timers.set(at, one)
            expected += [(at, one)] if at < math.inf else []
        due_first = min((at for at, _ in expected), default=math.inf)
        assert timers.earliest <= due_first, "something is due before the time at which one is told to look"
        assert timers.next() == (None if due_first == math.inf else due_first)
        assert timers.earliest == due_first, "looking drops what has ended"
    due = []
    while (timer := timers.due(100.0)) is not None:
        due.append(timer)
    assert due == sorted(expected)
    assert (len(timers), timers.earliest) == (0, math.inf)


def test_what_is_dropped_is_no_longer_due():
    timers, requests = made()
    requests["r1"] = ticket(1)
    timers.set(1.0, ticket(1))
    timers.clear()
    assert (timers.earliest, timers.due(2.0), timers.next()) == (math.inf, None, None)
