"""Events reach the listeners of their kind, and are not built where there is none."""

import pytest

from policies import catalog
from policies.events import EVENTS, FirstToken, WorkerGone
from policies.scheduler.event_dispatch import EventDispatch
from policies.scheduler.faults import Faults


class Listener:
    def __init__(self, hears=EVENTS, fault=None):
        self.hears = hears
        self.heard = []
        self.fault = fault

    def on(self, event):
        self.heard.append(event)
        if self.fault is not None:
            raise self.fault


def test_a_listener_hears_the_kinds_that_it_names():
    everything, first_tokens = Listener(), Listener(frozenset({FirstToken}))
    dispatch = EventDispatch((everything, first_tokens), Faults())
    dispatch.publish(WorkerGone, "a", 1.0)
    dispatch.publish(FirstToken, None, None, now=2.0)
    assert everything.heard == [WorkerGone("a", 1.0), FirstToken(None, None, 2.0)]
    assert first_tokens.heard == [FirstToken(None, None, 2.0)]


def test_the_kinds_that_are_heard_are_those_of_all_listeners_together():
    dispatch = EventDispatch((Listener(frozenset({FirstToken})), Listener(frozenset({WorkerGone}))), Faults())
    assert dispatch.heard == {FirstToken, WorkerGone}


def test_an_event_without_listeners_is_not_built(monkeypatch):
    dispatch = EventDispatch((Listener(frozenset({FirstToken})),), Faults())
    monkeypatch.setattr(WorkerGone, "__init__", lambda *_: pytest.fail("it was built"))
    dispatch.publish(WorkerGone, "a", 1.0)


def test_a_listener_that_raises_is_counted_and_the_others_hear_all_the_same():
    broken, other, faults = Listener(fault=(fault := KeyError())), Listener(), Faults()
    EventDispatch((broken, other), faults).publish(WorkerGone, "a", 1.0)
    assert (faults.count, faults.last, len(other.heard)) == (1, fault, 1)


@pytest.mark.parametrize("policies", [catalog.queue_policies(), catalog.placement_policies()])
def test_a_kind_that_a_policy_does_not_hear_changes_nothing_in_it(policies):
    """Otherwise it would miss it: a policy that names what it hears has to name all of it."""
    for entry in policies.values():
        policy = entry.build()
        for kind in EVENTS - policy.hears:
            before = {name: repr(value) for name, value in vars(policy).items()}
            policy.on(kind(*[None] * len(kind.__match_args__)))
            assert {name: repr(value) for name, value in vars(policy).items()} == before, (entry.name, kind)
