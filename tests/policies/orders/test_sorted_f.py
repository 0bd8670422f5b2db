"""Sorted-F: the bounded search beside an exhaustive one, the list beside the algorithm as printed."""

import random
from itertools import combinations
from math import inf

from hypothesis import given, settings
from hypothesis import strategies as st
from unit_steps import Job, naive, ordered, request, total_completion
from views import worker

from policies.orders.kit import least_f as module
from policies.orders.kit.least_f import Item, batches, f, least_f, together
from policies.orders.sorted_f import Settings, SortedF

ITEMS = st.lists(
    st.builds(Item, st.integers(1, 30), st.integers(1, 12), st.sampled_from([1, 1, 1, 2]), st.none()),
    min_size=1,
    max_size=10,
)


def by_answer(items, among=None):
    return sorted(range(len(items)) if among is None else among, key=lambda i: (items[i].answer, i))


def subsets(items, among, capacity):
    """Every set that fits, by ascending answer."""
    indices = by_answer(items, among)
    chosen = (list(c) for size in range(1, len(indices) + 1) for c in combinations(indices, size))
    return [c for c in chosen if together(items, c, capacity)]


def some_items(chance):
    draw = (lambda: chance.randint(1, 40)) if chance.random() < 0.5 else lambda: int(chance.paretovariate(0.8)) + 1
    items = [Item(draw(), draw()) for _ in range(chance.randint(2, 8))]
    return items, int(max(one.prompt + one.answer for one in items) * chance.choice([1, 1.5, 2, 3]))


# -- the search


@settings(max_examples=100)
@given(items=ITEMS, capacity=st.integers(1, 200))
def test_a_set_fits_exactly_if_no_step_overflows(items, capacity):
    steps = range(1, max(one.answer for one in items) + 1)
    held = (sum(i.prompt + i.sequences * step for i in items if i.answer >= step) for step in steps)
    assert together(items, by_answer(items), capacity) == (max(held) <= capacity)


@settings(max_examples=100)
@given(items=ITEMS, capacity=st.integers(20, 200))
def test_the_list_holds_every_request_once_in_sets_that_fit(items, capacity):
    sets = list(batches(items, capacity))
    assert sorted(i for one in sets for i in one) == list(range(len(items)))
    for one in sets:
        assert one == by_answer(items, one)
        assert together(items, one, capacity) or len(one) == 1


def test_the_bounded_search_is_hardly_ever_worse_than_the_exhaustive_one():
    """Of 300 cases of up to 8 requests: how many are missed, and by how much."""
    chance, gaps = random.Random(1), []
    for _ in range(300):
        items, capacity = some_items(chance)
        least = min(f(items, one) for one in subsets(items, None, capacity))
        found = f(items, least_f(items, by_answer(items), capacity))
        assert found >= least
        gaps.append(found / least)
    assert sum(gap > 1.0 for gap in gaps) <= 3
    assert max(gaps) <= 1.2


def test_what_no_greedy_order_finds_an_exchange_does():
    items = [Item(20, 7), Item(9, 5), Item(5, 6), Item(16, 4), Item(12, 12), Item(13, 4)]
    assert least_f(items, by_answer(items), 27) == [5, 2]
    assert f(items, [5, 2]) == min(f(items, one) for one in subsets(items, None, 27)) == 2.5


def test_the_search_never_grows_exponentially(monkeypatch):
    """Tests of memory for one set of 32 requests: a bounded number of rounds of n squared."""
    chance, tests = random.Random(2), []
    monkeypatch.setattr(module, "together", lambda *args: tests.append(1) or together(*args))
    for capacity in (300, 1000, 4000):
        items = [Item(chance.randint(1, 200), chance.randint(1, 100)) for _ in range(32)]
        tests.clear()
        least_f(items, by_answer(items), capacity)
        assert len(tests) <= 4 * 32 + 8 * 32 * (32 + 28)


# -- the order


def printed(jobs, capacity):
    """The list of the paper, by trying every set; the larger of two of equal F."""
    items, left, order = [Item(job.prompt, job.output) for job in jobs], list(range(len(jobs))), []
    while left:
        best = min(subsets(items, left, capacity), key=lambda one: (f(items, one), -len(one)))
        order += best
        left = [number for number in left if number not in best]
    return order


def test_a_backlog_is_run_as_the_printed_algorithm_runs_it():
    """Where they differ two sets have the same F, or the search has missed one: neither is worse on the whole."""
    chance, same, ratios = random.Random(3), 0, []
    for _ in range(60):
        jobs = [Job(chance.randint(1, 30), chance.randint(1, 12)) for _ in range(chance.randint(3, 7))]
        capacity = chance.randint(45, 110)
        order = printed(jobs, capacity)
        exact = naive(jobs, capacity, order=lambda waiting, order=order: [n for n in order if n in waiting])
        ours = ordered(SortedF(Settings(replan_share=0.0, halves_s=inf)), jobs, capacity)
        same += ours == exact
        ratios.append(total_completion(jobs, ours) / total_completion(jobs, exact))
    assert same >= 45
    assert max(ratios) <= 1.3
    assert sum(ratios) / len(ratios) <= 1.01


@settings(max_examples=60, deadline=None)
@given(
    jobs=st.lists(st.builds(Job, st.integers(1, 30), st.integers(1, 12)), min_size=1, max_size=12),
    capacity=st.integers(42, 120),
)
def test_it_runs_its_list_up_to_the_first_that_does_not_fit(jobs, capacity):
    # The search prefers the first of equals, and requests stand by volume in the queue.
    jobs = sorted(jobs, key=lambda job: job.prompt * job.output + job.output * (job.output + 1) // 2)
    order = [i for one in batches([Item(job.prompt, job.output) for job in jobs], capacity) for i in one]
    queue = SortedF(Settings(replan_share=0.0, halves_s=inf))
    expected = naive(jobs, capacity, order=lambda waiting: [n for n in order if n in waiting])
    assert ordered(queue, jobs, capacity) == expected


def test_the_list_is_made_anew_when_enough_have_come(monkeypatch):
    made = []
    monkeypatch.setattr("policies.orders.sorted_f._Lists", lambda pool: made.append(len(pool)) or _Kept(pool))
    queue = SortedF(Settings(replan_share=0.5, window=8))
    for number in range(40):
        queue.push(request(number, Job(10, 10)))
    made.clear()
    for number in range(40, 60):
        queue.push(request(number, Job(50, 50)))  # does not belong into the list
    assert made == []
    for number in range(60, 65):
        queue.push(request(number, Job(1, 1)))
    assert made == [8]


class _Kept:
    def __init__(self, pool):
        self.pool = pool


def test_the_list_is_made_anew_when_half_of_it_is_gone_and_others_wait():
    queue = SortedF(Settings(window=4, halves_s=inf))
    asked = [request(number, Job(10 + number, 10)) for number in range(8)]
    for one in asked:
        queue.push(one)
    assert list(queue._pool) == ["r000", "r001", "r002", "r003"]
    for one in asked[:2]:
        queue.remove(one)
    assert list(queue._pool) == ["r000", "r001", "r002", "r003"]
    queue.remove(asked[2])
    assert list(queue._pool) == ["r003", "r004", "r005", "r006"]
    for one in asked[3:]:
        queue.remove(one)
    assert (len(queue), queue._pool) == (0, {})


def test_a_worker_of_unknown_memory_takes_the_shortest_answers_first():
    queue, asked = (
        SortedF(Settings()),
        [request(number, Job(10, output)) for number, output in enumerate((30, 10, 20))],
    )
    for one in asked:
        queue.push(one)
    for expected in ("r001", "r002", "r000"):
        (offer,) = queue.candidates([worker("a")], 0.0)
        assert offer.request.id == expected
        queue.remove(offer.request)


def test_in_the_measure_of_a_set_what_has_waited_counts_by_half():
    old, young = Item(10, 40, aged=10.0), Item(10, 20, aged=20.0)
    assert least_f([old, young], [1, 0], 55) == [0]
    assert list(batches([old, young], 100)) == [[0, 1]]


def test_a_large_request_comes_first_once_it_has_waited_for_long():
    """Small ones keep coming, and each minute of waiting halves the size of the large one."""
    queue, large = SortedF(Settings(halves_s=60.0, window=8)), request(999, Job(30, 64))
    queue.push(large)
    for number in range(600):
        queue.push(request(number, Job(8, 4, number)))
        (offer,) = queue.candidates([worker("a", kv_tokens=140)], float(number))
        queue.remove(offer.request)
        if offer.request is large:
            break
    assert 60 <= number <= 60 * 5
