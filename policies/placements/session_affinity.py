"""Which worker had the last request of this conversation?

Source: sticky sessions, as in nginx, Envoy and the vLLM production stack.

A conversation is named by the request's session, else by its parent (the agent program that it belongs to), else
by its client. It follows its last request: whoever computed that holds the longest part of the next one. A new
conversation, or one whose worker is gone or cannot be used, goes to the least loaded worker.

[ours] A worker without room is waited for (`full: wait`, bounded by the scheduler's `hold_ms`) or left for the
least loaded one that has room (`full: next`), and then the conversation moves there.

The table of conversations is bounded: the one that was quiet longest is forgotten first, which costs it one
request without its cache.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from policies.events import Bound, Event
from policies.model import Hold, Matches, Place, Placement, Reason, RequestView, WorkerId, WorkerView


@dataclass(frozen=True, slots=True)
class Settings:
    full: Literal["wait", "next"] = "wait"
    """What to do when the conversation's worker has no room: wait for it, or go elsewhere."""
    conversations: int = 100_000
    """Remembered at most."""


class SessionAffinity:
    """A table of conversations, moved when a request's worker is settled."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._homes: OrderedDict[tuple[str, str], WorkerId] = OrderedDict()

    def __len__(self) -> int:
        return len(self._homes)

    def choose(
        self, request: RequestView, matches: Matches, workers: Sequence[WorkerView], now: float
    ) -> Place | Hold | None:
        able = [worker for worker in workers if worker.admits(request, matches.get(worker.id, 0))]
        if not able:
            return None
        name = self._homes.get(conversation(request))
        home = next((worker for worker in workers if worker.id == name), None)
        if home is not None and home.admits(request, matches.get(home.id, 0)):
            return self._place(home, Reason.HIT if matches.get(home.id) else Reason.MISS, matches)
        if home is not None and self._settings.full == "wait" and home.room.expected_at > now:
            return Hold(home.id, home.room.expected_at)
        least = min(able, key=lambda worker: (worker.load_s, worker.kv_reserved))
        return self._place(least, Reason.LOAD if home is None else Reason.SPILL, matches)

    def on(self, event: Event) -> None:
        if isinstance(event, Bound):
            name = conversation(event.request)
            self._homes[name] = event.placement.decode
            self._homes.move_to_end(name)
            while len(self._homes) > self._settings.conversations:
                self._homes.popitem(last=False)

    def _place(self, worker: WorkerView, reason: Reason, matches: Matches) -> Place:
        return Place(Placement(worker.id), reason, matches.get(worker.id, 0), worker.load_s)


def conversation(request: RequestView) -> tuple[str, str]:
    """What a request belongs to: a client, and a name that this client gave."""
    return request.client, request.session or request.parent or ""
