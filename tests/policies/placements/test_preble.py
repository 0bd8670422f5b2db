"""Preble: its load cost against a brute force over everything that happened, then each of its rules."""

from collections import OrderedDict
from dataclasses import dataclass, field, replace
from statistics import fmean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from views import chosen, named, ranking, request, worker

from policies.events import Bound, Left, Placed, Queued, WorkerArrived, WorkerGone
from policies.fleet.speed import Profile
from policies.model import Outcome, Placement, Reason, Usage, WorkerFacts
from policies.placements.kit import preble_window
from policies.placements.kit.preble_window import CHUNK, Window
from policies.placements.preble import Preble, Settings, _Costs

WINDOW_S = 60.0
SPEED = Profile(base_s=0.01, per_token_s=1e-3, per_pair_s=1e-7, step_base_s=0.02, per_sequence_s=1e-3)


def prompt(topic, chunks, tail=0):
    """A number of chunks that all prompts of a topic share, and a tail too short to be one."""
    return bytes([65 + topic]) * (CHUNK * chunks) + bytes([1 + tail]) * (tail % CHUNK)


def policy(**fields):
    return Preble(Settings(**{"window_s": WINDOW_S, **fields}))


def place(made, one, name, *, now=0.0, extend=None):
    made.on(Bound(one, Placement(name), now))
    missed = one.input_tokens if extend is None else extend
    made.on(Placed(one, Placement(name), one.input_tokens - missed, missed, now))


def give(made, name, number, *, tokens=1000, now=0.0, key="x"):
    """Work for a worker that nothing is remembered of but its amount."""
    for index in range(number):
        place(made, request(f"{key}{name}{index}", tokens=tokens), name, now=now)


# -- the cost, by brute force


@dataclass
class Remembered:
    """All that ever happened, searched through for every question."""

    capacity: dict
    given: list = field(default_factory=list)
    answers: list = field(default_factory=list)

    def held(self, name):
        """An LRU of chunk texts, replayed from the beginning."""
        lru = OrderedDict()
        for _, where, text, *_ in self.given:
            if where == name:
                for depth in reversed(range(len(text) // CHUNK)):
                    lru[text[: (depth + 1) * CHUNK]] = depth
                    lru.move_to_end(text[: (depth + 1) * CHUNK])
                while len(lru) > self.capacity[name]:
                    lru.popitem(last=False)
        return lru

    def cost(self, view, fleet, one, matched, now):
        text, expected = one.key.data, one.expected_output_tokens
        recent = [entry for entry in self.given if entry[1] == view.id and entry[0] > now - WINDOW_S]
        outputs = [tokens for at, tokens in self.answers if at > now - WINDOW_S]
        output = fmean(outputs) if outputs else expected
        batch = max(1, round(fmean(each.sequences for each in fleet)))
        speed = view.profile
        load = sum(
            speed.prefill_s(missed, context) + output * speed.step_s(batch) / batch
            for _, _, _, missed, context in recent
        )
        own = {text[: (depth + 1) * CHUNK] for depth in range(len(text) // CHUNK)}
        held = self.held(view.id)
        excess = len(own - held.keys()) + len(held) - self.capacity[view.id]
        victims = [item for item in held.items() if item[0] not in own][: max(0, excess)]
        eviction = 0.0
        for chunk, depth in victims if recent else ():
            share = sum(used.startswith(chunk) for _, _, used, *_ in recent) / len(recent)
            pairs = CHUNK * (depth * CHUNK + CHUNK / 2)
            eviction += share * (speed.per_token_s * CHUNK + speed.per_pair_s * pairs)
        return load, load + eviction + speed.prefill_s(max(1, len(text) - matched), matched)


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["place", "place", "place", "answer", "rebind", "fail", "gone"]),
        st.sampled_from("ab"),
        st.integers(0, 3),
        st.integers(0, 5),
        st.integers(0, 3),
        st.sampled_from([0.0, 1.0, 7.0, 45.0]),
    ),
    min_size=1,
    max_size=40,
)


@settings(max_examples=60, deadline=None)
@given(events=EVENTS, asked=st.tuples(st.integers(0, 3), st.integers(0, 6)))
def test_the_load_cost_is_that_of_a_search_through_all_that_happened(events, asked):
    capacity = {"a": 8, "b": 12}
    made, now, live = policy(), 0.0, {}
    brute = Remembered(capacity)
    for name, chunks in capacity.items():
        made.on(WorkerArrived(WorkerFacts(name, frozenset({"base"}), kv_tokens=chunks * CHUNK), now))
    for number, (what, name, topic, chunks, tail, wait) in enumerate(events):
        now += wait
        one = request(f"r{number}", prompt=prompt(topic, chunks, tail) or b"?")
        missed = one.input_tokens // 2 + 1
        entry = (now, name, one.key.data, missed, one.input_tokens - missed)
        if what in {"place", "rebind"}:
            if what == "rebind":  # a line that was placed anew leaves its chunks where it was
                other = "b" if name == "a" else "a"
                made.on(Bound(one, Placement(other), now))
                brute.given.append((-1e9, other, *entry[2:]))
            place(made, one, name, now=now, extend=missed)
            brute.given.append(entry)
            live[one.id] = (one, entry)
        elif what == "gone":
            made.on(WorkerGone(name, now))
            facts = WorkerFacts(name, frozenset({"base"}), kv_tokens=capacity[name] * CHUNK)
            made.on(WorkerArrived(facts, now))
            brute.given = [each for each in brute.given if each[1] != name]
        elif live:
            one, entry = live.pop(next(iter(live)))
            answered = what == "answer"
            outcome = Outcome.COMPLETED if answered else None
            made.on(Left(one, Placement(entry[1]), outcome, Usage(9, 10 * number) if answered else None, now))
            if answered:
                brute.answers.append((now, 10 * number))
            elif entry in brute.given:
                brute.given[brute.given.index(entry)] = (-1e9, *entry[1:])  # its chunks stay
    made.on(Queued(request("now"), now))
    one = request("asked", prompt=prompt(*asked) or b"?")
    fleet = [worker("a", requests=3, profile=SPEED), worker("b", requests=8)]
    costs = _Costs(made._window, one, {"b": 5}, fleet)
    for view in fleet:
        matched = min(5, one.input_tokens) if view.id == "b" else 0
        load, cost = brute.cost(view, fleet, one, matched, now)
        assert costs.load(view) == pytest.approx(load)
        assert costs.load_cost(view) == pytest.approx(cost)


def test_what_was_used_least_recently_is_evicted_first_and_tails_before_heads():
    window = Window(WINDOW_S)
    window.arrive("a", 4 * CHUNK)
    for topic in (0, 1, 0):
        entry = window.bind(request(prompt=prompt(topic, 2)), "a", 0.0)
        window.place(entry, 1, 0)
    zero, one = (preble_window.chunks_of(request(prompt=prompt(topic, 2))) for topic in (0, 1))
    assert list(window._given["a"].held) == [one[1], one[0], zero[1], zero[0]]
    tokens = SPEED.per_token_s * CHUNK
    flat = replace(SPEED, per_pair_s=0.0)
    costs = [window.eviction_s("a", range(new), flat) for new in range(5)]
    assert costs == pytest.approx([0.0, tokens / 3, 2 * tokens / 3, 4 * tokens / 3, 6 * tokens / 3])


def test_an_empty_window_weighs_nothing():
    window = Window(WINDOW_S)
    entry = window.bind(request(prompt=prompt(1, 5)), "a", 0.0)
    window.answer(50, 0.0)
    window.wait(entry, entry.chunks[0], 3.0)
    window.expire(WINDOW_S)
    assert (window.prefill_s("a", SPEED), window.requests("a"), window.mean_output()) == (0.0, 0, None)
    given = window._given["a"]
    assert not given.uses
    assert not window._uses
    assert not window._waits
    assert not window._entries
    assert not window._outputs
    assert len(given.held) == 5


def test_the_window_is_bounded(monkeypatch):
    monkeypatch.setattr(preble_window, "_MOST", 20)
    made = policy()
    give(made, "a", 50)
    for index in range(50):
        made.on(Left(request(f"xa{index}"), Placement("a"), Outcome.COMPLETED, Usage(9, 9), 0.0))
    assert made._window.requests("a") <= 21
    assert len(made._window._outputs) <= 20
    assert not made._entries


# -- exploit or explore


def test_it_exploits_only_what_is_more_than_half_cached():
    made = policy()
    give(made, "a", 1)
    fleet = [worker("a"), worker("b")]
    assert named(made, fleet, {"a": 501}, request(tokens=1000)) == "a"
    assert named(made, fleet, {"a": 500}, request(tokens=1000)) == "b"


def test_among_holders_of_the_longest_match_the_least_load_cost_wins():
    made = policy()
    give(made, "a", 2)
    give(made, "b", 1)
    fleet = [worker("a"), worker("b"), worker("c")]
    assert chosen(made, fleet, {"a": 900, "b": 900, "c": 899}, request(), 0.0) == ("b", Reason.HIT)


def test_to_explore_what_would_be_evicted_counts():
    made = policy(decode_share=1.0)
    for name, kv_tokens in (("a", 4 * CHUNK), ("b", 400 * CHUNK)):
        made.on(WorkerArrived(WorkerFacts(name, frozenset({"base"}), kv_tokens=kv_tokens), 0.0))
    fleet = [worker("a", profile=SPEED), worker("b", profile=SPEED)]
    place(made, request("on a", prompt=prompt(0, 4)), "a", extend=100)
    place(made, request("on b", prompt=prompt(0, 4)), "b", extend=400)
    assert named(made, fleet, {}, request(tokens=CHUNK)) == "a"
    assert named(made, fleet, {}, request(prompt=prompt(1, 4))) == "b"


def test_a_worker_that_mostly_decodes_soaks_up_prefills_unless_it_is_loaded():
    made = policy(decode_share=0.9)
    give(made, "a", 4, tokens=10)
    give(made, "b", 1, tokens=40)
    give(made, "c", 30, tokens=20_000)
    fleet = [worker("a"), worker("b"), worker("c")]
    assert named(made, fleet) == "a"
    give(made, "a", 400, tokens=10, key="more")
    assert named(made, fleet) == "b"


# -- after the assignment


def test_a_heavy_worker_s_exploits_go_to_the_light_one_until_it_is_no_longer_heavy():
    made, fleet = policy(slack_s=0.01), [worker("a"), worker("b"), worker("c")]
    give(made, "a", 5, tokens=3000)
    give(made, "b", 3, tokens=3000)
    give(made, "c", 4, tokens=3000)
    assert chosen(made, fleet, {"a": 900}, request(), 0.0) == ("b", Reason.SPILL)
    assert named(made, fleet, {"c": 900}) == "c", "it is not the heavy one"
    give(made, "b", 1, tokens=3000, key="more")
    assert named(made, fleet, {"a": 900}) == "a"


def test_a_small_difference_makes_nobody_heavy():
    made, fleet = policy(slack_s=60.0), [worker("a"), worker("b")]
    give(made, "a", 5, tokens=3000)
    assert named(made, fleet, {"a": 900}) == "a"


def hot(made, waits, start=0.0):
    """Requests of one prefix that waited so long, all on worker a."""
    for index, wait in enumerate(waits):
        one = request(f"h{start}{index}", prompt=prompt(0, 8, index + 1), arrived=start + index - wait)
        place(made, one, "a", now=start + index, extend=10)


def asked():
    return request("asked", prompt=prompt(0, 8, 50))


FLEET = [worker("a"), worker("b"), worker("c", requests=1)]
MATCHES = {"a": 8 * CHUNK}


def test_a_hot_prefix_whose_queueing_doubles_gets_another_worker_once():
    made = policy(slack_s=1e9)
    hot(made, [1.0] * 25 + [2.5] * 10)
    assert chosen(made, FLEET, MATCHES, asked(), 35.0) == ("b", Reason.SPILL)
    place(made, asked(), "b", now=35.0)
    assert named(made, FLEET, {**MATCHES, "b": 8 * CHUNK}, replace(asked(), id="next")) in {"a", "b"}
    assert named(made, FLEET, MATCHES, replace(asked(), id="next")) == "a"


@pytest.mark.parametrize(
    ("waits", "fields"),
    [
        ([1.0] * 25 + [1.5] * 10, {}),
        ([0.01] * 25 + [0.05] * 10, {}),
        ([1.0] * 5 + [2.5] * 5, {"hot_requests": 5}),
        ([1.0] * 25 + [2.5] * 10, {"replicate": False}),
        ([1.0] * 25 + [2.5] * 10, {"hot_requests": 36}),
    ],
    ids=["not doubled", "not noticeable", "too few", "switched off", "not hot"],
)
def test_otherwise_it_stays_where_it_is(waits, fields):
    made = policy(slack_s=1e9, **fields)
    hot(made, waits)
    assert named(made, FLEET, MATCHES, asked()) == "a"


def test_waits_that_are_older_than_the_window_say_nothing():
    made = policy(slack_s=1e9)
    hot(made, [1.0] * 25 + [2.5] * 10)
    made.on(Queued(request("later"), 35.0 + WINDOW_S))
    assert named(made, FLEET, MATCHES, asked()) == "a"


def test_the_others_follow_by_load_cost():
    made = policy(slack_s=1e9)
    give(made, "a", 3)
    give(made, "b", 2)
    give(made, "c", 1)
    fleet = [worker(name) for name in "abcd"]
    order = ranking(made, fleet, {"a": 900})
    assert [entry.worker.id for entry in order] == ["a", "d", "c", "b"]
    assert [entry.reason for entry in order] == [Reason.HIT] + [Reason.SPILL] * 3
