"""Events reach those who listen to their kind, and are not built for nobody."""

import pytest

from policies import catalog
from policies.events import EVENTS, FirstToken, Left, Placed, WorkerGone
from policies.knowledge import Knowledge
from policies.scheduler.disaggregation import Pairs
from policies.scheduler.event_dispatch import Audience, heard
from policies.scheduler.faults import Faults


class Listener:
    def __init__(self, fault=None):
        self.told = []
        self.fault = fault

    def on(self, event):
        self.told.append(event)
        if self.fault is not None:
            raise self.fault


class Choosy(Listener):
    hears = frozenset({FirstToken})


def test_who_says_nothing_hears_everything_and_who_is_choosy_hears_that():
    everything, choosy = Listener(), Choosy()
    audience = Audience((everything, choosy), Faults())
    audience.tell(WorkerGone, "a", 1.0)
    audience.tell(FirstToken, None, None, now=2.0)
    assert everything.told == [WorkerGone("a", 1.0), FirstToken(None, None, 2.0)]
    assert choosy.told == [FirstToken(None, None, 2.0)]


def test_an_event_that_nobody_listens_to_is_not_built(monkeypatch):
    audience = Audience((Choosy(),), Faults())
    monkeypatch.setattr(WorkerGone, "__init__", lambda *_: pytest.fail("it was built"))
    audience.tell(WorkerGone, "a", 1.0)


def test_a_listener_that_raises_is_counted_and_the_others_hear_all_the_same():
    broken, other, faults = Listener(fault := KeyError()), Listener(), Faults()
    Audience((broken, other), faults).tell(WorkerGone, "a", 1.0)
    assert (faults.count, faults.last, len(other.told)) == (1, fault, 1)


@pytest.mark.parametrize("policies", [catalog.queue_policies(), catalog.placement_policies()])
def test_what_a_policy_does_not_listen_to_changes_nothing_in_it(policies):
    """Otherwise it would miss it: whoever says what it hears has to say all of it."""
    for entry in policies.values():
        policy = entry.build()
        for kind in EVENTS - heard(policy):
            before = {name: repr(value) for name, value in vars(policy).items()}
            policy.on(kind(*[None] * len(kind.__match_args__)))
            assert {name: repr(value) for name, value in vars(policy).items()} == before, (entry.name, kind)


def test_in_front_of_a_placement_pairs_hear_for_it_too():
    knowledge = Knowledge()
    assert Pairs(Choosy(), knowledge).hears == {FirstToken, Placed, Left}
    assert Pairs(Listener(), knowledge).hears == EVENTS
