"""Who has been told to wait, and is there a reason to ask again?

Every event makes the scheduler look at the queue, and most change nothing for most who wait there. So what a
request was told is remembered, until

- it had no room anywhere: a worker admits it on which since then an answer has ended or grown (its end is nearer),
  a prefill was done, or that has changed; or a worker that holds more of its prompt than it did;
- it would rather wait (`Hold`): that wait is over, or a worker has given room back;
- it has to keep off fewer workers than it had to.

What only takes room (somebody else was placed) is no reason: within one look at the queue who would rather wait
says so once.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from policies.model import Candidate, Matches, RequestView, WorkerId, WorkerView
from policies.prefixes import Prefixes
from policies.roster import Roster


@dataclass(slots=True, eq=False)
class Refusal:
    """What a request was told, and what that rests on."""

    keep_off: frozenset[WorkerId]
    matches: Matches
    prefixes: int
    """Version of the prefixes that `matches` is of."""
    given: int
    eased: int
    """Of the roster; what they count has not happened since."""
    until: float | None
    """End of a `Hold`; None: there was no room."""
    beside: Mapping[WorkerId, float]
    """Workers with room that are left unused for this request, and since when."""


class Refusals:
    """By request, from its first refusal until it leaves the queue."""

    def __init__(
        self, roster: Roster, prefixes: Prefixes, has_room: Callable[[WorkerView, RequestView, int], bool]
    ) -> None:
        self._roster = roster
        self._prefixes = prefixes
        self._has_room = has_room
        self._told: dict[str, Refusal] = {}

    def stands(self, candidate: Candidate, now: float) -> Refusal | None:
        """What the candidate was told, if asking again would bring the same answer."""
        told = self._told.get(candidate.request.id)
        if told is None or not told.keep_off <= candidate.keep_off:
            return None
        if told.until is not None:
            return told if told.given == self._roster.given and now < told.until else None
        return None if self._admitted(candidate.request, told) else told

    def matches(self, request: RequestView) -> Matches:
        """Tokens of its prompt that each worker holds; found anew only if any prefix has changed since."""
        told, version = self._told.get(request.id), self._prefixes.version
        return told.matches if told is not None and told.prefixes == version else self._prefixes.match(request)

    def holds(
        self, candidate: Candidate, matches: Matches, until: float, beside: Mapping[WorkerId, float]
    ) -> None:
        self._tell(candidate, matches, until, beside)

    def no_room(self, candidate: Candidate, matches: Matches) -> None:
        self._tell(candidate, matches, None, {})

    def would_rather_wait(self, request: RequestView) -> bool:
        """Whether that is what it was told last, and not that there is no room."""
        told = self._told.get(request.id)
        return told is not None and told.until is not None

    def forget(self, request: RequestView) -> None:
        """It has left the queue."""
        self._told.pop(request.id, None)

    def _tell(
        self, candidate: Candidate, matches: Matches, until: float | None, beside: Mapping[WorkerId, float]
    ) -> None:
        version, given, eased = self._prefixes.version, self._roster.given, self._roster.eased
        self._told[candidate.request.id] = Refusal(
            candidate.keep_off, matches, version, given, eased, until, beside
        )

    def _admitted(self, request: RequestView, told: Refusal) -> bool:
        """Whether anybody may have become able to take a request that had no room; else that is noted."""
        version, eased = self._prefixes.version, self._roster.eased
        if told.prefixes != version:
            told.matches, told.prefixes = self._prefixes.match(request), version
            asked = self._roster.views()
        elif told.eased != eased:
            asked = self._roster.eased_since(told.eased)
        else:
            return False
        for view in asked:
            if self._has_room(view, request, told.matches.get(view.id, 0)):
                return True
        told.eased = eased
        return False
