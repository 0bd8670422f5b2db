"""Shortest answer first, wherever it fits."""

from math import inf

from hypothesis import given, settings
from hypothesis import strategies as st
from unit_steps import Job, request
from views import worker

from policies.orders.shortest_first import Settings, ShortestFirst

WAITING = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 20)), min_size=1, max_size=20)


def queue(*jobs, **fields):
    made = ShortestFirst(Settings(**fields))
    for number, job in enumerate(jobs):
        made.push(request(number, job))
    return made


def offered(made, now=0.0):
    return [offer.request.id for offer in made.candidates([worker("a")], now)]


@settings(max_examples=80, deadline=None)
@given(waiting=WAITING)
def test_it_is_a_sort_by_predicted_output(waiting):
    made = queue(*(Job(5, output, at) for output, at in waiting), halves_s=inf, window=len(waiting))
    ordered = sorted(range(len(waiting)), key=lambda number: (*waiting[number], number))
    assert offered(made, 30.0) == [f"r{number:03}" for number in ordered]


def test_of_a_long_queue_only_a_few_are_offered():
    made = queue(*(Job(5, 500 - number) for number in range(500)), window=3)
    assert offered(made) == ["r499", "r498", "r497"]
