"""The states of a client's connection, and of a response on it: two tables that are the code.

    Incoming, per connection                      Outgoing, per request

    HEAD ──HEADERS──► BODY ──END──► BETWEEN       WAITING ──START──► HEADED ──BODY──► STREAMING
      ▲                                │             HEADED, STREAMING ──END──► COMPLETE
      └────────────BEGIN───────────────┘          every one but COMPLETE ──LOSE──► LOST
    every one ──REFUSE──► REFUSED                 LOST: nothing can be sent, and sending is no mistake

What is not in a table raises IllegalEvent: an answer that begins twice or goes on after its end is a bug of the
router, and no byte of it may reach a client. (The form is h11's `_state.py`.)
"""

from enum import IntEnum, auto


class Incoming(IntEnum):
    """What of a request is read next."""

    HEAD = auto()
    BODY = auto()
    BETWEEN = auto()
    """A request is complete, and the next one has not begun."""
    REFUSED = auto()
    """An error has been written; what still comes in is thrown away."""


class Heard(IntEnum):
    """What the parser finds, or is stopped by."""

    BEGIN = auto()
    HEADERS = auto()
    END = auto()
    REFUSE = auto()


class Outgoing(IntEnum):
    """How far a response is."""

    WAITING = auto()
    HEADED = auto()
    """Its head is made, and leaves with the first of its body."""
    STREAMING = auto()
    COMPLETE = auto()
    LOST = auto()
    """The client has left."""


class Said(IntEnum):
    """What the application sends, or is stopped by."""

    START = auto()
    BODY = auto()
    END = auto()
    LOSE = auto()


class IllegalEvent(RuntimeError):
    """An event that its state does not allow."""


_INCOMING = {
    (Incoming.HEAD, Heard.BEGIN): Incoming.HEAD,
    (Incoming.BETWEEN, Heard.BEGIN): Incoming.HEAD,
    (Incoming.HEAD, Heard.HEADERS): Incoming.BODY,
    (Incoming.BODY, Heard.END): Incoming.BETWEEN,
    (Incoming.HEAD, Heard.REFUSE): Incoming.REFUSED,
    (Incoming.BODY, Heard.REFUSE): Incoming.REFUSED,
    (Incoming.BETWEEN, Heard.REFUSE): Incoming.REFUSED,
}

_OUTGOING = {
    (Outgoing.WAITING, Said.START): Outgoing.HEADED,
    (Outgoing.HEADED, Said.BODY): Outgoing.STREAMING,
    (Outgoing.STREAMING, Said.BODY): Outgoing.STREAMING,
    (Outgoing.HEADED, Said.END): Outgoing.COMPLETE,
    (Outgoing.STREAMING, Said.END): Outgoing.COMPLETE,
    (Outgoing.WAITING, Said.LOSE): Outgoing.LOST,
    (Outgoing.HEADED, Said.LOSE): Outgoing.LOST,
    (Outgoing.STREAMING, Said.LOSE): Outgoing.LOST,
    (Outgoing.COMPLETE, Said.LOSE): Outgoing.COMPLETE,
    **{(Outgoing.LOST, said): Outgoing.LOST for said in Said},
}


def heard(state: Incoming, event: Heard) -> Incoming:
    """The state after an event. Raises IllegalEvent."""
    after = _INCOMING.get((state, event))
    if after is None:
        raise IllegalEvent(f"{event.name} cannot follow {state.name} on a connection")
    return after


def said(state: Outgoing, event: Said) -> Outgoing:
    """The state after an event. Raises IllegalEvent."""
    after = _OUTGOING.get((state, event))
    if after is None:
        raise IllegalEvent(f"{event.name} cannot follow {state.name} in a response")
    return after
