"""Replays side by side in processes of their own, and their results as they come."""

import multiprocessing
import signal
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from typing import TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")
Numbered = Generator[tuple[int, Result], None, None]


def results_of(work: Callable[[Task], Result], tasks: Sequence[Task], jobs: int) -> Numbered[Result]:
    """The result of each task with the task's place, in the order in which they finish.

    With one job everything runs in this process, one after the other. `work` and the tasks have to be picklable
    otherwise. However the generator ends, also by `close`, no process goes on. Raises what `work` raises.
    """
    if min(jobs, len(tasks)) <= 1:
        for number, task in enumerate(tasks):
            yield number, work(task)
        return
    before = set(multiprocessing.active_children())
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(jobs, len(tasks)), mp_context=context, initializer=_leave_interrupts)
    try:
        number_of: dict[Future[Result], int] = {pool.submit(work, task): n for n, task in enumerate(tasks)}
        waiting = set(number_of)
        while waiting:
            finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in finished:
                yield number_of[future], future.result()
    except BaseException:
        for process in set(multiprocessing.active_children()) - before:
            process.terminate()
        pool.shutdown(cancel_futures=True)  # waits for the thread that waits for them, or the two would race
        raise
    pool.shutdown()


def _leave_interrupts() -> None:
    """A terminal sends Ctrl-C to every process; the parent alone acts on it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
