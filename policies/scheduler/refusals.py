"""Who has been told to wait, and is there a reason to ask again?

Every event makes the scheduler look at the queue, and most change nothing for most who wait there. So what a
request was told is remembered, until

- it had no room anywhere: a worker admits it on which since then an answer has ended or grown (its end is nearer),
  a prefill was done, or that has changed; or a worker that holds more of its prompt than it did;
- it would rather wait (`Hold`): that wait is over, a worker has given room back, somebody else was placed where it
  waits for room, or its prompt is held by other workers than before;
- it has to keep off fewer workers than it had to.

What only takes room elsewhere (somebody else was placed) is no reason: within one look at the queue who would
rather wait says so once.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from policies.fleet.fleet import Fleet
from policies.model import Candidate, Hold, Matches, RequestView, WorkerId, WorkerView
from policies.prefixes.index import Prefixes


@dataclass(slots=True, eq=False)
class Refusal:
    """What a request was told, and what that rests on."""

    keep_off: frozenset[WorkerId]
    matches: Matches
    prefixes: int
    """Version of the prefixes that `matches` is of."""
    given: int
    eased: int
    """Of the fleet; what they count has not happened since."""
    hold: Hold | None = None
    """Where it would rather wait and until when at most; None: there was no room."""
    taken: int = 0
    """How often somebody had been placed there."""
    beside: Mapping[WorkerId, float] = field(default_factory=dict)
    """Workers with room that are left unused for this request, and since when."""


class Refusals:
    """By request, from its first refusal until it leaves the queue."""

    def __init__(
        self, fleet: Fleet, prefixes: Prefixes, has_room: Callable[[WorkerView, RequestView, int], bool]
    ) -> None:
        self._fleet = fleet
        self._prefixes = prefixes
        self._has_room = has_room
        self._told: dict[str, Refusal] = {}

    def stands(self, candidate: Candidate, now: float) -> Refusal | None:
        """What the candidate was told, if asking again would bring the same answer."""
        told = self._told.get(candidate.request.id)
        if told is None or not told.keep_off <= candidate.keep_off:
            return None
        if told.hold is not None:
            return told if now < told.hold.until and self._as_it_was(candidate.request, told, told.hold) else None
        return None if self._admitted(candidate.request, told) else told

    def matches(self, request: RequestView) -> Matches:
        """Tokens of its prompt that each worker holds; found anew only if any prefix has changed since."""
        told, version = self._told.get(request.id), self._prefixes.version
        return told.matches if told is not None and told.prefixes == version else self._prefixes.match(request)

    def holds(self, candidate: Candidate, matches: Matches, hold: Hold, beside: Mapping[WorkerId, float]) -> None:
        told = self.no_room(candidate, matches)
        told.hold, told.taken, told.beside = hold, self._fleet.dispatches(hold.worker), beside

    def no_room(self, candidate: Candidate, matches: Matches) -> Refusal:
        version, given, eased = self._prefixes.version, self._fleet.room_returned, self._fleet.more_room
        told = Refusal(candidate.keep_off, matches, version, given, eased)
        self._told[candidate.request.id] = told
        return told

    def forget(self, request: RequestView) -> None:
        """It has left the queue."""
        self._told.pop(request.id, None)

    def _as_it_was(self, request: RequestView, told: Refusal, hold: Hold) -> bool:
        """Whether a request that would rather wait would say so again."""
        if told.given != self._fleet.room_returned or told.taken != self._fleet.dispatches(hold.worker):
            return False
        version = self._prefixes.version
        if told.prefixes != version:
            before, told.matches, told.prefixes = told.matches, self._prefixes.match(request), version
            return told.matches == before
        return True

    def _admitted(self, request: RequestView, told: Refusal) -> bool:
        """Whether anybody may have become able to take a request that had no room; else that is noted."""
        version, eased = self._prefixes.version, self._fleet.more_room
        if told.prefixes != version:
            told.matches, told.prefixes = self._prefixes.match(request), version
            asked = self._fleet.views()
        elif told.eased != eased:
            asked = self._fleet.with_more_room_since(told.eased)
        else:
            return False
        for view in asked:
            if self._has_room(view, request, told.matches.get(view.id, 0)):
                return True
        told.eased = eased
        return False
