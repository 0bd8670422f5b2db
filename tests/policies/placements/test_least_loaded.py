"""Least loaded: the work in hand in seconds, by each worker's own profile."""

from views import chosen, request, worker

from policies.fleet.speed import Profile
from policies.model import Reason
from policies.placements.least_loaded import LeastLoaded, Settings


def least(*workers, **fields):
    return chosen(LeastLoaded(Settings()), workers, **fields)


def test_prefill_owed_counts_in_time():
    assert least(worker("a", owed=2000), worker("b", owed=500)) == ("b", Reason.LOAD)


def test_sequences_count_by_the_step_of_their_worker():
    slow, fast = Profile(step_base_s=0.1), Profile(step_base_s=0.01)
    assert least(worker("a", requests=3, profile=slow), worker("b", requests=9, profile=fast))[0] == "b"


def test_ties_go_to_the_emptier_cache():
    assert least(worker("a", kv=500), worker("b", kv=100))[0] == "b"


def test_what_the_workers_hold_of_the_prompt_is_nothing_to_it():
    assert least(worker("a", owed=1), worker("b"), matches={"a": 999}, asked=request())[0] == "b"
