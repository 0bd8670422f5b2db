"""Which worker had the last request of this conversation?

Source: sticky sessions, as in nginx, Envoy and the vLLM production stack.

A conversation is named by the request's session, else by its parent (the agent program that it belongs to), else
by its client. It follows its last request: the worker that computed that one holds the longest part of the next
one. A new conversation, or one whose worker is gone or cannot be used, goes to the least loaded worker.

[ours] Where its worker has no room for longer than the scheduler's `hold_s`, a conversation moves to the least
loaded worker. The table of conversations is bounded: the one that was quiet longest is forgotten first, which
costs it one request without its cache.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import ClassVar

from policies.events import Bound, Event
from policies.model import Question, Ranked, Reason, RequestView, WorkerId
from policies.protocol import PlacementPolicy


@dataclass(frozen=True, slots=True)
class Settings:
    conversations: int = 100_000
    """Remembered at most."""


class SessionAffinity(PlacementPolicy):
    """A table of conversations, moved when a request's worker is settled."""

    hears: ClassVar[frozenset[type[Event]]] = frozenset({Bound})

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._homes: OrderedDict[tuple[str, str], WorkerId] = OrderedDict()

    def __len__(self) -> int:
        return len(self._homes)

    def rank(self, question: Question) -> list[Ranked]:
        home = self._homes.get(conversation(question.request))
        workers = sorted(question.workers, key=lambda w: (w.id != home, w.load_s, w.kv_reserved))
        known = workers[0].id == home
        reasons = (Reason.HIT if question.matches.get(home or "") else Reason.MISS, Reason.SPILL)
        return [
            (worker, float(place), reasons[place > 0] if known else Reason.LOAD)
            for place, worker in enumerate(workers)
        ]

    def on(self, event: Event) -> None:
        if isinstance(event, Bound):
            name = conversation(event.request)
            self._homes[name] = event.placement.ranked
            self._homes.move_to_end(name)
            while len(self._homes) > self._settings.conversations:
                self._homes.popitem(last=False)


def conversation(request: RequestView) -> tuple[str, str]:
    """What a request belongs to: a client, and a name that this client gave."""
    return request.client, request.session or request.parent or ""
