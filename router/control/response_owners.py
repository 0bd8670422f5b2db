"""Who owns a stored response, and which worker keeps it.

Workers store responses without knowing clients, so any client that names an id there gets its response. Here each
id has an owner, the client whose key made it; to all others it does not exist. Where no keys are needed all ids
have the same owner, the empty one.

Invariants: an id that is known never changes its owner; at most `MOST` ids are known. Beyond that the oldest id of
the owner that has most of them is forgotten, so that no client can push out the ids of others by storing many. A
forgotten id is treated like one that was never known: where keys are needed it does not exist for any client, its
owner included, because nothing says whose it is.
"""

from collections import OrderedDict

from policies.model import WorkerId

MOST = 100_000


class ResponseOwners:
    """Response id to owner and worker."""

    def __init__(self) -> None:
        self._by_owner: dict[str, OrderedDict[str, WorkerId]] = {}
        """Each owner's ids with their workers, in the order in which they became known."""
        self._owners: dict[str, str] = {}
        """Owner by id."""

    def __len__(self) -> int:
        return len(self._owners)

    def claim(self, response: str, owner: str) -> bool:
        """Take an id before it is stored; False if it is another's."""
        known = self._owners.get(response)
        if known is None:
            self._add(response, owner, "")
        return known is None or known == owner

    def keep(self, response: str, worker: WorkerId, owner: str) -> None:
        """The worker stores a response of this owner. Nothing changes for an id of another."""
        known = self._owners.get(response)
        if known is None:
            self._add(response, owner, worker)
        elif known == owner:
            self._by_owner[owner][response] = worker

    def find(self, response: str | None, owner: str) -> WorkerId | None:
        """The worker that stores it; None for an id that is not known, or not this owner's."""
        if response is None or self._owners.get(response) != owner:
            return None
        return self._by_owner[owner][response] or None

    def _add(self, response: str, owner: str, worker: WorkerId) -> None:
        if len(self._owners) >= MOST:
            self._forget_one(owner)
        self._owners[response] = owner
        self._by_owner.setdefault(owner, OrderedDict())[response] = worker

    def _forget_one(self, newcomer: str) -> None:
        """Make room for an id of `newcomer`: its own oldest goes if it has its share, else the largest owner's."""
        most = self._by_owner.get(newcomer)
        if most is None or len(most) * len(self._by_owner) < len(self._owners):
            most = max(self._by_owner.values(), key=len)
        forgotten, _ = most.popitem(last=False)
        owner = self._owners.pop(forgotten)
        if not most:
            del self._by_owner[owner]
