"""The table of goals at the end of a run; pytest-benchmark's own table has no 99th percentile."""

from statistics import median

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

Row = tuple[str, str, str]


class Goals:
    """What was measured beside what is wanted."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def add(self, what: str, measured: str, wanted: str) -> None:
        self.rows.append((what, measured, wanted))

    def times(
        self, what: str, benchmark: BenchmarkFixture, median_us: float | None = None, p99_us: float | None = None
    ) -> None:
        """The times of a benchmark that has run; a goal for its median, its 99th percentile, or both."""
        if benchmark.stats is None:  # --benchmark-disable
            return
        laps = sorted(1e6 * seconds for seconds in benchmark.stats.stats.data)
        found = {"median": (median(laps), median_us), "p99": (laps[int(0.99 * len(laps))], p99_us)}
        benchmark.extra_info |= {f"{name}_us": round(measured, 1) for name, (measured, _) in found.items()}
        for name, (measured, goal) in found.items():
            self.add(f"{what}, {name}", f"{measured:.1f} us", "" if goal is None else f"<= {goal:g} us")


_KEY = pytest.StashKey[Goals]()


@pytest.fixture
def goals(pytestconfig: pytest.Config) -> Goals:
    """Where a benchmark says what it found."""
    return pytestconfig.stash.setdefault(_KEY, Goals())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the table."""
    rows = config.stash.get(_KEY, Goals()).rows
    if rows:
        terminalreporter.section("goals")
    for what, measured, wanted in rows:
        terminalreporter.write_line(f"{what:<52} {measured:>12}   {wanted}")
