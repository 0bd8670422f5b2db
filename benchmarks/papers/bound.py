"""No schedule is better than this: lower bounds on the sum of completion times under a memory limit.

The model (arXiv 2502.07115, 2508.06133, 2606.22327): a job with a prompt of s tokens and an answer of o tokens
runs for o steps without a break, and holds s + t tokens in its t-th step; in every step the jobs that run hold at
most M together. Over its life it takes a *volume* of `s*o + o*(o+1)/2` token-steps.

Relaxation: let memory be a single machine that does M token-steps per step, a job as large as its volume, which
may be interrupted and shared at will. Every schedule of the model is one of this machine's, so what the machine
cannot beat nobody can. Three facts about it, each for jobs with release times r:

1. *Shortest remaining first* has finished as many jobs as possible at every moment (Schrage), so the k-th
   completion of any schedule is not before its k-th completion. With all jobs there from the start that is the
   sum of the k smallest volumes, over M, which is the volume argument of the papers.
2. No k jobs end before the k-th smallest `r + o`: a job takes its o steps.
3. The sum of *mean busy times* (the average moment at which a job's volume is done) is smallest when the smallest
   job that is there always goes first (Goemans, 1997). In the model a job's mean busy time precedes its end by
   `o - sum over t of (t - 1/2)(s + t) / volume`, which is known before any schedule is. Added up, that bounds the
   sum of completion times too; it is the better one where jobs are long beside the whole schedule.

`lower_bound` is the larger of 1 and 2 (the later of both, for each k) and of 3. It may be short of the optimum:
growing jobs are triangles, which do not fill the memory as liquids do.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush


@dataclass(frozen=True, slots=True)
class Job:
    """A request in the model."""

    prompt: int
    answer: int
    """At least 1."""
    release: float = 0.0

    @property
    def volume(self) -> int:
        return self.prompt * self.answer + self.answer * (self.answer + 1) // 2

    @property
    def tail(self) -> float:
        """Steps from its mean busy time to its end."""
        s, o = self.prompt, self.answer
        moments = s * o * o / 2 + o * (o + 1) * (2 * o + 1) / 6 - o * (o + 1) / 4
        return o - moments / self.volume


@dataclass(frozen=True, slots=True)
class Load:
    """A job of the relaxed machine."""

    size: float
    """Time that the machine takes for it, alone and without a break."""
    release: float = 0.0


def lower_bound(jobs: Sequence[Job], memory: int) -> float:
    """What the completion times of any schedule add up to, at least, in steps."""
    loads = [Load(job.volume / memory, job.release) for job in jobs]
    alone = [job.release + job.answer for job in jobs]
    return max(by_count(loads, alone), by_mean_busy_time(loads) + sum(job.tail for job in jobs))


def by_count(loads: Sequence[Load], alone: Sequence[float]) -> float:
    """The k-th completion is not before that of the relaxed machine, nor before the k-th of the ends `alone`."""
    machine = sorted(end for end, _ in _preempting(loads, lambda _, remaining: remaining))
    return sum(map(max, machine, sorted(alone)))


def by_mean_busy_time(loads: Sequence[Load]) -> float:
    """The least sum of mean busy times."""
    return sum(moment for _, moment in _preempting(loads, lambda size, _: size))


def _preempting(loads: Sequence[Load], rank: Callable[[float, float], float]) -> list[tuple[float, float]]:
    """The relaxed machine, always at the job of least `rank(size, what remains of it)`: ends, mean busy times."""
    arriving = sorted(range(len(loads)), key=lambda number: -loads[number].release)
    there: list[tuple[float, int, float]] = []
    """Rank, number, what remains."""
    moments = [0.0] * len(loads)
    done: list[tuple[float, float]] = []
    now = 0.0
    while arriving or there:
        if not there:
            now = max(now, loads[arriving[-1]].release)
        while arriving and loads[arriving[-1]].release <= now:
            number = arriving.pop()
            heappush(there, (rank(loads[number].size, loads[number].size), number, loads[number].size))
        _, number, remaining = heappop(there)
        end = now + remaining
        until = min(end, loads[arriving[-1]].release) if arriving else end
        moments[number] += (until - now) * (now + until) / 2
        if until == end:
            done.append((end, moments[number] / loads[number].size))
        else:
            heappush(there, (rank(loads[number].size, end - until), number, end - until))
        now = until
    return done
