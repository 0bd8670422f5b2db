"""Each placement's own rule, one fact at a time; what all of them share is in test_catalog.py."""

from policies.events import Bound
from policies.fleet.capacity import Room
from policies.fleet.speed import Profile
from policies.model import Placement, PrefixKey, Reason, RequestView, WorkerFacts, WorkerView
from policies.placements import cache_aware, least_loaded, round_robin

OPEN = Room(idle=False, prefill_idle=True, prefill_free=4000, slots_free=None, kv_free=None, expected_at=0.0)
FULL = Room(idle=False, prefill_idle=False, prefill_free=0, slots_free=0, kv_free=0, expected_at=9.0)


def request(tokens=1000):
    return RequestView(
        id="r",
        client="anna",
        served_name="base",
        key=PrefixKey(),
        input_tokens=tokens,
        expected_output_tokens=100,
        arrived=0.0,
    )


def worker(name, *, requests=0, owed=0, kv=0, room=OPEN, profile=None):
    return WorkerView(
        id=name,
        facts=WorkerFacts(name, frozenset({"base"})),
        requests=requests,
        sequences=requests,
        prefill_owed=owed,
        decode_tokens=0,
        kv_reserved=kv,
        room=room,
        profile=(speed := profile or Profile()),
        load_s=speed.prefill_s(owed) + requests * speed.step_s(requests),
    )


def chosen(policy, workers, matches=None, asked=None):
    place = policy.choose(asked or request(), matches or {}, workers, 0.0)
    return None if place is None else (place.placement.decode, place.reason)


# -- round robin


def rounds(policy, workers, times):
    names = []
    for _ in range(times):
        place = policy.choose(request(), {}, workers, 0.0)
        names.append(place.placement.decode)
        policy.on(Bound(request(), place.placement, 0.0))
    return names


def test_round_robin_takes_workers_in_turn():
    policy = round_robin.RoundRobin(round_robin.Settings())
    assert rounds(policy, [worker("a"), worker("b"), worker("c")], 5) == ["a", "b", "c", "a", "b"]


def test_round_robin_passes_over_workers_without_room():
    policy = round_robin.RoundRobin(round_robin.Settings())
    assert rounds(policy, [worker("a"), worker("b", room=FULL), worker("c")], 3) == ["a", "c", "c"]


def test_round_robin_moves_on_only_when_a_request_is_placed():
    policy = round_robin.RoundRobin(round_robin.Settings())
    fleet = [worker("a"), worker("b")]
    assert [chosen(policy, fleet) for _ in range(3)] == [("a", Reason.TURN)] * 3


# -- least loaded


def least(*workers, **fields):
    return chosen(least_loaded.LeastLoaded(least_loaded.Settings()), workers, **fields)


def test_least_loaded_counts_prefill_owed_in_time():
    assert least(worker("a", owed=2000), worker("b", owed=500)) == ("b", Reason.LOAD)


def test_least_loaded_counts_sequences_by_the_step_of_their_worker():
    slow, fast = Profile(step_base_s=0.1), Profile(step_base_s=0.01)
    assert least(worker("a", requests=3, profile=slow), worker("b", requests=9, profile=fast)) == (
        "b",
        Reason.LOAD,
    )


def test_least_loaded_breaks_ties_by_the_emptier_cache():
    assert least(worker("a", kv=500), worker("b", kv=100)) == ("b", Reason.LOAD)


def test_the_only_worker_with_room_is_no_choice():
    assert least(worker("a", room=FULL), worker("b", requests=50)) == ("b", Reason.ONLY_CHOICE)
    aware = cache_aware.CacheAware(cache_aware.Settings())
    assert chosen(aware, [worker("a", room=FULL), worker("b")], {"a": 900}) == ("b", Reason.ONLY_CHOICE)


def test_a_match_can_make_a_request_fit():
    tight = Room(idle=False, prefill_idle=False, prefill_free=200, slots_free=None, kv_free=None, expected_at=0.0)
    assert least(worker("a", room=tight), matches={"a": 700}) is None
    assert least(worker("a", room=tight), matches={"a": 800}) == ("a", Reason.ONLY_CHOICE)


# -- cache aware


def aware(*workers, matches=None, **settings):
    return chosen(cache_aware.CacheAware(cache_aware.Settings(**settings)), workers, matches)


def test_cache_aware_prefers_the_longest_match():
    fleet = [worker("a"), worker("b", requests=20), worker("c", requests=30)]
    assert aware(*fleet, matches={"b": 400, "c": 900}) == ("c", Reason.HIT)


def test_cache_aware_takes_the_less_loaded_of_equal_matches():
    fleet = [worker("a"), worker("b", requests=20), worker("c", requests=10)]
    assert aware(*fleet, matches={"b": 900, "c": 900}) == ("c", Reason.HIT)


def test_cache_aware_ignores_a_match_that_covers_too_little():
    fleet = [worker("a", requests=1), worker("b", requests=5)]
    assert aware(*fleet, matches={"b": 300}) == ("a", Reason.MISS)
    assert aware(*fleet, matches={"b": 301}) == ("b", Reason.HIT)


def test_cache_aware_spills_when_the_lines_are_uneven_by_both_measures():
    assert aware(worker("a"), worker("b", requests=65), matches={"b": 900}) == ("a", Reason.SPILL)
    assert aware(worker("a"), worker("b", requests=64), matches={"b": 900}) == ("b", Reason.HIT)
    even = [worker("a", requests=200), worker("b", requests=290)]
    assert aware(*even, matches={"b": 900}) == ("b", Reason.HIT)


def test_cache_aware_without_a_match_and_uneven_goes_by_load():
    assert aware(worker("a"), worker("b", requests=65)) == ("a", Reason.LOAD)


def test_a_choice_says_what_was_matched():
    place = cache_aware.CacheAware(cache_aware.Settings()).choose(
        request(), {"b": 900}, [worker("a"), worker("b")], 0.0
    )
    assert (place.placement, place.matched_tokens) == (Placement("b"), 900)
