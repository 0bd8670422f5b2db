"""Requests and workers as a placement sees them, made by hand."""

from typing import NamedTuple

from policies.fleet.capacity import Room
from policies.fleet.speed import Profile
from policies.model import PrefixKey, Question, Reason, RequestView, WorkerFacts, WorkerView

OPEN = Room(idle=False, prefill_idle=True, prefill_free=4000, slots_free=None, kv_free=None)


def full(until=9.0):
    return Room(idle=False, prefill_idle=False, prefill_free=0, slots_free=0, kv_free=0, prefill_due=until)


def request(name="r", client="anna", *, tokens=1000, prompt=None, output=100, arrived=0.0, **fields):
    """`prompt` is a byte per token; without one the prompt matches nothing."""
    return RequestView(
        id=name,
        client=client,
        served_name="base",
        key=PrefixKey() if prompt is None else PrefixKey(prompt, 1, 1.0),
        input_tokens=tokens if prompt is None else len(prompt),
        expected_output_tokens=output,
        arrived=arrived,
        **fields,
    )


def worker(name, *, requests=0, owed=0, kv=0, kv_tokens=None, room=OPEN, profile=None):
    speed = profile or Profile()
    return WorkerView(
        id=name,
        facts=WorkerFacts(name, frozenset({"base"}), kv_tokens=kv_tokens),
        requests=requests,
        sequences=requests,
        prefill_owed=owed,
        decode_tokens=0,
        kv_reserved=kv,
        room=room,
        profile=speed,
        load_s=speed.prefill_s(owed) + requests * speed.step_s(requests),
        prefill_due=0.0,
    )


class Entry(NamedTuple):
    """A worker in a ranking, with names for its parts."""

    worker: WorkerView
    cost: float
    reason: Reason


def ranking(policy, workers, matches=None, asked=None, now=0.0):
    """All workers with cost and reason, best first."""
    return [Entry(*ranked) for ranked in policy.rank(Question(asked or request(), matches or {}, workers, now))]


def first(policy, workers, matches=None, asked=None, now=0.0):
    """The best-ranked worker, its cost and the reason."""
    return ranking(policy, workers, matches, asked, now)[0]


def chosen(policy, workers, matches=None, asked=None, now=0.0):
    """The best-ranked worker's name, and why it is the best."""
    best = first(policy, workers, matches, asked, now)
    return best.worker.id, best.reason


def named(policy, workers, matches=None, asked=None, now=0.0):
    """The best-ranked worker's name."""
    return first(policy, workers, matches, asked, now).worker.id
