"""Longest match first, by the caches of all workers; what has waited for long comes before."""

from hypothesis import given, settings
from hypothesis import strategies as st
from stepped_fleet import SteppedFleet, Wish, view
from views import worker

from policies.knowledge import Knowledge
from policies.orders.lpm import Lpm, Settings

WORKERS = [worker("a"), worker("b")]
WAITING = st.lists(
    st.tuples(st.integers(0, 3), st.integers(2, 60), st.integers(0, 20), st.booleans()), min_size=1, max_size=20
)


def request(name, *, topic=0, tokens=40, arrived=0.0, **fields):
    return view(name, Wish("anna", 0, tokens, 5, topic, more=tuple(fields.items())), float(arrived))


@settings(max_examples=60, deadline=None)
@given(waiting=WAITING, cached=WAITING, now=st.sampled_from([20.0, 25.0, 100.0]))
def test_it_is_a_sort_by_match_of_what_has_not_waited_long(waiting, cached, now):
    knowledge = Knowledge()
    for number, (topic, tokens, _, first) in enumerate(cached):
        kept = request(f"c{number}", topic=topic, tokens=tokens)
        knowledge.prefixes.insert("a" if first else "b", kept, float(number))
    made, asked = Lpm(Settings(patience_s=10.0), knowledge), []
    for number, (topic, tokens, arrived, again) in enumerate(waiting):
        one = request(f"r{number:02}", topic=topic, tokens=tokens, arrived=arrived)
        made.push(one, again=again)
        asked.append(one)

    def key(one):
        if now - one.arrived > 10.0:
            return 0, 0, one.arrived, one.id
        return 1, -max(knowledge.prefixes.match(one).values(), default=0), one.arrived, one.id

    offers = list(made.candidates(WORKERS, now))
    assert [offer.request for offer in offers] == sorted(asked, key=key)
    assert all(offer.overdue == (now - offer.request.arrived > 10.0) for offer in offers)


def test_only_the_oldest_are_compared():
    knowledge = Knowledge()
    made = Lpm(Settings(window=2), knowledge)
    hit = request("hit", topic=1, arrived=2.0)
    knowledge.prefixes.insert("a", hit, 0.0)
    for one in (request("first"), request("second", arrived=1.0), hit):
        made.push(one)
    assert [offer.request.id for offer in made.candidates(WORKERS, 2.0)] == ["first", "second"]
    made.remove(request("first"))
    assert [offer.request.id for offer in made.candidates(WORKERS, 2.0)] == ["hit", "second"]


def test_one_that_comes_back_stands_where_it_stood():
    made = Lpm(Settings(), Knowledge())
    for name, arrived in (("second", 2.0), ("third", 3.0), ("first", 1.0)):
        made.push(request(name, arrived=arrived, excluded=frozenset({"b"})), again=True)
    assert [one.id for one in made.waiting()] == ["first", "second", "third"]


def test_a_cold_prompt_starts_although_hits_keep_coming():
    flood = [Wish("flood", at, 20, 4, topic=1) for at in range(100) for _ in range(2)]
    cold = Wish("modest", 3, 100, 4, topic=2)
    played = SteppedFleet("lpm", make=lambda knowledge: Lpm(Settings(patience_s=20.0), knowledge)).play(
        [*flood, cold]
    )
    (started,) = [played.started[name] for name, one in played.views.items() if one.client == "modest"]
    assert 23.0 < started <= 40.0  # once impatient, after those who came before it


def test_without_patience_it_is_order_of_arrival():
    flood = [Wish("flood", at, 20, 4, topic=at % 3) for at in range(30)]
    played = SteppedFleet("lpm", make=lambda knowledge: Lpm(Settings(patience_s=-1.0), knowledge)).play(flood)
    assert list(played.started) == sorted(played.started)
