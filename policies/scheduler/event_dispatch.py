"""Sends events to the policies that use them.

Each request brings several events, and most policies use few kinds, or none. So the listeners of each kind are
settled once, and an event without listeners is not even built. Whether a kind is `heard` can be asked before
`publish` is called, where most pools have no listener.
"""

from collections.abc import Callable, Iterable
from typing import Any, ParamSpec, Protocol

from policies.events import EVENTS, Event
from policies.scheduler.faults import Faults

_Fields = ParamSpec("_Fields")


class Listener(Protocol):
    """Whatever hears events: a policy, or a part of the scheduler."""

    @property
    def hears(self) -> frozenset[type[Event]]:
        """Kinds of events that `on` uses."""

    def on(self, event: Any) -> None: ...


class EventDispatch:
    """The listeners of one pool, by the kinds of events that they use."""

    def __init__(self, listeners: Iterable[Listener], faults: Faults) -> None:
        every = list(listeners)
        self._listeners: dict[Callable[..., Event], list[Listener]] = {
            kind: [listener for listener in every if kind in listener.hears] for kind in EVENTS
        }
        self.heard = frozenset(kind for kind, listeners in self._listeners.items() if listeners)
        """Kinds that have listeners."""
        self._faults = faults

    def publish(self, kind: Callable[_Fields, Event], *fields: _Fields.args, **named: _Fields.kwargs) -> None:
        """Build the event and send it. What a listener raises is counted, never passed on."""
        listeners = self._listeners[kind]
        if not listeners:
            return
        event = kind(*fields, **named)
        for listener in listeners:
            try:
                listener.on(event)
            except Exception as fault:  # noqa: BLE001 - whatever it is, requests go on
                self._faults.add(fault)
