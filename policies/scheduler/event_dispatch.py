"""Which policies hear of an event? Those that have not said that they have no use for its kind.

Each request brings several events, and most policies listen to few kinds, or to none. So who listens to what is
settled once, and an event that nobody listens to is not even built.
"""

from collections.abc import Callable, Iterable
from typing import ParamSpec

from policies.events import EVENTS, Event
from policies.protocol import HearsOnly, PlacementPolicy, QueuePolicy
from policies.scheduler.faults import Faults

_Fields = ParamSpec("_Fields")


class Audience:
    """The policies of one pool, by what they listen to."""

    def __init__(self, policies: Iterable[QueuePolicy | PlacementPolicy], faults: Faults) -> None:
        asked = [(policy, heard(policy)) for policy in policies]
        self._listeners: dict[Callable[..., Event], list[QueuePolicy | PlacementPolicy]] = {
            kind: [policy for policy, kinds in asked if kind in kinds] for kind in EVENTS
        }
        self._faults = faults

    def tell(self, kind: Callable[_Fields, Event], *fields: _Fields.args, **named: _Fields.kwargs) -> None:
        """An event of this kind has happened. A policy that raises has a bug, but that is never an outage."""
        listeners = self._listeners[kind]
        if not listeners:
            return
        event = kind(*fields, **named)
        for policy in listeners:
            try:
                policy.on(event)
            except Exception as fault:  # noqa: BLE001 - whatever it is, requests go on
                self._faults.add(fault)


def heard(policy: QueuePolicy | PlacementPolicy) -> frozenset[type[Event]]:
    """The kinds of events that a policy listens to."""
    return policy.hears if isinstance(policy, HearsOnly) else EVENTS
