"""What a scenario is given and what it finds: options, figures with a value per round, who could not take part."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from statistics import median

from benchmarks.dataplane.client import Tally
from benchmarks.dataplane.routers import Place, Started, started
from benchmarks.fleet.routers import NotInstalledError, NotReadyError


@dataclass(frozen=True, slots=True)
class Options:
    """What holds for every scenario."""

    routers: tuple[str, ...]
    seconds: float
    """Measured per router and round."""
    rounds: int
    streams: int
    """Of the scenario `memory`."""
    rate: float
    """Requests per second of the scenario `open-loop`."""
    seed: int
    tell: Callable[[str], None]


@dataclass(slots=True)
class Figure:
    """One line of the table: a value per router and round."""

    name: str
    unit: str
    values: dict[str, list[float]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    """What else there is to say, per router."""

    def add(self, router: str, value: float) -> None:
        self.values.setdefault(router, []).append(value)

    def median(self, router: str) -> float | None:
        values = self.values.get(router)
        return median(values) if values else None

    def so_far(self) -> str:
        """The medians up to now."""
        return ", ".join(f"{name} {self.median(name):.2f} {self.unit}" for name in self.values)


@dataclass(slots=True)
class Outcome:
    """What a scenario has found."""

    figures: list[Figure]
    failed: dict[str, int] = field(default_factory=dict)
    """Answers that were not whole, per router."""
    faults: dict[str, str] = field(default_factory=dict)
    """The first of them."""
    left_out: dict[str, str] = field(default_factory=dict)

    def count(self, router: str, tally: Tally) -> None:
        if tally.failed:
            self.failed[router] = self.failed.get(router, 0) + tally.failed
            self.faults.setdefault(router, next(iter(tally.faults), ""))


@asynccontextmanager
async def side_by_side(names: Sequence[str], place: Place, outcome: Outcome) -> AsyncIterator[list[Started]]:
    """All routers that work here; the others are named in `left_out`."""
    async with AsyncExitStack() as stack:
        up = []
        for name in names:
            try:
                up.append(await stack.enter_async_context(started(name, place)))
            except (NotInstalledError, NotReadyError) as error:
                outcome.left_out[name] = str(error)
        yield up
