"""How far is each worker? A live line for each on a terminal, plain lines elsewhere, the log once all serve."""

import logging
import textwrap
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import Progress as ProgressBars
from rich.progress import SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column

from workers.launch.supervisor import Progress, Stage

log = logging.getLogger(__name__)

PLAIN_LOADING_EVERY_S = 5.0
"""Without a terminal: at most one line per worker and this many seconds while it loads."""
LINE_WIDTH = 140


class LaunchDisplay:
    """Takes the supervisor's progress: shown while the fleet starts, logged after `finish`."""

    def __init__(
        self, workers: Sequence[str], console: Console, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._console = console
        self._clock = clock
        self._serving = False
        self._last_loading = dict.fromkeys(workers, float("-inf"))
        self._bars: ProgressBars | None = None
        self._lines: dict[str, TaskID] = {}
        if console.is_terminal:
            self._bars = ProgressBars(
                SpinnerColumn(finished_text="[green]✓[/]"),
                TextColumn("{task.fields[worker]}", markup=False),
                TimeElapsedColumn(),
                TextColumn(
                    "{task.description}",
                    markup=False,
                    table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"),
                ),
                console=console,
                expand=True,
            )
            self._lines = {name: self._bars.add_task("", total=1, worker=name) for name in workers}

    def __enter__(self) -> Self:
        if self._bars:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars:
            self._bars.stop()

    def finish(self) -> None:
        """All workers serve: leaves the lines as they are and turns to the log."""
        if self._bars:
            self._bars.stop()
        self._serving = True

    def tell(self, progress: Progress) -> None:
        """The supervisor's callback."""
        if self._serving:
            _log(progress)
        elif self._bars:
            self._bars.update(
                self._lines[progress.worker],
                description=sentence(progress),
                completed=int(progress.stage is Stage.HEALTHY),
            )
        elif self._is_due(progress):
            self._console.print(
                f"{progress.worker}: {sentence(progress)}", markup=False, highlight=False, soft_wrap=True
            )

    def _is_due(self, progress: Progress) -> bool:
        if progress.stage is not Stage.LOADING:
            return True
        now = self._clock()
        due = now - self._last_loading[progress.worker] >= PLAIN_LOADING_EVERY_S
        if due:
            self._last_loading[progress.worker] = now
        return due


def sentence(progress: Progress) -> str:
    """One step in words, without the worker's name."""
    match progress.stage:
        case Stage.LOADING:
            return textwrap.shorten(progress.detail, LINE_WIDTH, placeholder=" ...")
        case Stage.HEALTHY:
            return f"healthy at {progress.url}"
        case Stage.DIED:
            return f"died: {progress.detail}"
        case Stage.RESTARTING:
            return f"restarting in {progress.delay_s:.0f} s"
        case _:
            return str(progress.stage.value)


def _log(progress: Progress) -> None:
    levels = {Stage.DIED: logging.ERROR, Stage.RESTARTING: logging.WARNING, Stage.HEALTHY: logging.INFO}
    level = levels.get(progress.stage, logging.DEBUG)
    log.log(level, "%s %s", progress.worker, sentence(progress))
