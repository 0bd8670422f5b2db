"""What counters know of workers' states, and of what else is shown as a state."""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from workers.fleet.worker import State, Worker


class Transitions:
    """How often the workers behind each URL came into each state: counted, as scrapes miss what is short."""

    def __init__(self) -> None:
        self._states: dict[str, State] = {}
        self._counts: dict[str, Counter[State]] = {}

    def saw(self, worker: Worker) -> None:
        if self._states.get(worker.id) is not worker.state:
            self._states[worker.id] = worker.state
            self._counts.setdefault(worker.spec.url, Counter())[worker.state] += 1

    def forget(self, worker: str) -> None:
        self._states.pop(worker, None)

    def of(self, url: str) -> Counter[State]:
        return self._counts.get(url, Counter())

    def keep(self, urls: Collection[str]) -> None:
        """Forget the servers that are no longer there."""
        for url in self._counts.keys() - urls:
            del self._counts[url]


@dataclass(frozen=True, slots=True)
class Observed:
    """What the counters know that is shown as a state."""

    label: Callable[[str], str]
    """From a client's account to its label."""
    clients: Callable[[], Sequence[str]]
    """Clients that have a label of their own, sorted."""
    transitions: Transitions
    heads: Collection[int]
    """How the prompts of the last requests begin, hashed."""
