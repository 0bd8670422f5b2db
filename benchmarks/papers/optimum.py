"""The least sum of completion times under a memory limit, as an integer program.

Needs scipy, the extra `benchmarks`.

The model is that of `bound.py` with every job there from the start: a job started at step p holds `s + t`
tokens in step `p + t`, for t from 1 to o, and ends at `p + o`; nobody is interrupted; at most M tokens are held
in any step.

    minimise  sum (p + o_k) x[k, p]
    where     sum over p of x[k, p] = n_k                                     for every kind k of job
              sum over k and p < tau <= p + o_k of (s_k + tau - p) x[k, p] <= M   for every step tau
              x[k, p] whole, from 0 to n_k

`x[k, p]` counts the jobs of kind k, that is with equal prompt and equal answer, that start at step p:
time-indexed variables, with the symmetry between equal jobs taken out. Three things make a small case provable
in seconds:

1. `improved` exchanges jobs in a list that is run with every job at its earliest start. Some list gives an optimal
   schedule, so the search can only miss the optimum, never pass it.
2. No job of an optimal schedule ends after `horizon`: else the others together would have to beat their bound.
3. A variable whose reduced cost in the linear relaxation exceeds the gap between relaxation and best schedule is 0
   in every better schedule. Mostly half of the variables go.

HiGHS does the rest (`scipy.optimize.linprog` and `milp`).
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from scipy.sparse import csc_array

from benchmarks.papers.bound import Job, lower_bound

_TOLERANCE = 1e-6
_INFEASIBLE = 2
"""A status of `milp`."""
Kind = tuple[int, int]
"""Prompt and answer, tokens."""


@dataclass(frozen=True, slots=True)
class Optimum:
    """The best schedule found, and what no schedule is better than; equal where the optimum is proven."""

    total: int
    """Sum of completion times, in steps."""
    bound: int

    @property
    def proven(self) -> bool:
        return self.total == self.bound


def optimum(jobs: Sequence[Job], memory: int, *, nodes: int = 8_000, exchanges: int = 2000) -> Optimum:
    """The optimum of jobs that are there from the start, or the best found in so many nodes of HiGHS.

    Every job fits by itself: `prompt + answer <= memory`. Raises ValueError for one that does not.
    """
    if any(job.prompt + job.answer > memory for job in jobs):
        raise ValueError(f"a job does not fit into {memory} tokens by itself")
    kinds = [(job.prompt, job.answer) for job in jobs]
    best = improved(kinds, memory, exchanges)
    program = _Program(kinds, memory, horizon(jobs, memory, best))
    relaxed = linprog(
        program.cost,
        A_ub=program.held,
        b_ub=program.room,
        A_eq=program.started,
        b_eq=program.counts,
        bounds=np.column_stack((np.zeros_like(program.most), program.most)),
    )
    bound = math.ceil(relaxed.fun - _TOLERANCE)
    kept = np.flatnonzero(relaxed.fun + relaxed.lower.marginals <= best - 1 + _TOLERANCE)
    if bound >= best or not program.startable(kept):
        return Optimum(best, best)
    solved = milp(
        program.cost[kept],
        constraints=[
            LinearConstraint(program.held[:, kept], -np.inf, program.room),
            LinearConstraint(program.started[:, kept], program.counts, program.counts),
        ],
        integrality=np.ones(len(kept)),
        bounds=Bounds(0, program.most[kept]),
        options={"node_limit": nodes, "mip_rel_gap": 0.0},
    )
    if solved.status == _INFEASIBLE:  # no schedule is better than the list's
        return Optimum(best, best)
    if solved.fun is not None:
        best = min(best, round(solved.fun))
    if solved.mip_dual_bound is not None:
        bound = max(bound, math.ceil(solved.mip_dual_bound - _TOLERANCE))
    return Optimum(best, min(best, bound))


def horizon(jobs: Sequence[Job], memory: int, total: int) -> int:
    """No job ends later in a schedule that comes to at most `total`: the others take at least their bound."""
    others = min(lower_bound([*jobs[:out], *jobs[out + 1 :]], memory) for out in range(len(jobs)))
    return min(sum(job.answer for job in jobs), math.floor(total - others + _TOLERANCE))


class _Program:
    """The integer program as arrays: a column per kind and start."""

    def __init__(self, jobs: Sequence[Kind], memory: int, steps: int) -> None:
        counted = sorted(Counter(jobs).items())
        self.counts = np.array([count for _, count in counted], float)
        columns = [(kind, p) for kind, ((_, o), _) in enumerate(counted) for p in range(steps - o + 1)]
        self.kinds = np.array([kind for kind, _ in columns])
        self.cost = np.array([p + counted[kind][0][1] for kind, p in columns], float)
        at_once = [memory // sum(kind) for kind, _ in counted]
        self.most = np.array([min(counted[kind][1], at_once[kind]) for kind, _ in columns], float)
        self.room = np.full(steps, float(memory))
        rows, places, values = [], [], []
        for place, (kind, p) in enumerate(columns):
            s, o = counted[kind][0]
            rows.append(np.arange(p, p + o))
            places.append(np.full(o, place))
            values.append(_held(s, o))
        entries = np.concatenate(values).astype(float), (np.concatenate(rows), np.concatenate(places))
        self.held = csc_array(entries, shape=(steps, len(columns)))
        ones = np.ones(len(columns)), (self.kinds, np.arange(len(columns)))
        self.started = csc_array(ones, shape=(len(counted), len(columns)))

    def startable(self, kept: Any) -> bool:
        """Whether every kind still has a start among these columns."""
        return len(np.unique(self.kinds[kept])) == len(self.counts)


# -- a good schedule to begin with


def improved(jobs: Sequence[Kind], memory: int, exchanges: int) -> int:
    """The sum of completion times of a list after so many exchanges, worse ones accepted less and less often."""
    chance = Random(0)
    lists = [sorted(jobs, key=key) for key in (lambda job: job[1], lambda job: sum(_held(*job)), sum)]
    best, now = min((listed(one, memory), one) for one in lists)
    current = best
    for left in range(exchanges, 0, -1):
        other = list(now)
        i, j = chance.randrange(len(jobs)), chance.randrange(len(jobs))
        if other[i] == other[j]:
            continue
        if chance.random() < 0.5:
            other[i], other[j] = other[j], other[i]
        else:
            other.insert(j, other.pop(i))
        total = listed(other, memory)
        warmth = 0.003 * best * left / exchanges
        if total <= current or chance.random() < math.exp((current - total) / warmth):
            current, now = total, other
            best = min(best, total)
    return best


def listed(jobs: Sequence[Kind], memory: int) -> int:
    """The sum of completion times when each job in turn takes its earliest start, beside those before it."""
    room = np.full(sum(o for _, o in jobs), memory)
    earliest: dict[Kind, int] = {}
    total = 0
    for job in jobs:
        need, p = _held(*job), earliest.get(job, 0)
        while (room[p : p + len(need)] < need).any():
            p += 1
        room[p : p + len(need)] -= need
        earliest[job] = p
        total += p + len(need)
    return total


def _held(prompt: int, answer: int) -> Any:
    """Tokens in each step of a job."""
    return prompt + np.arange(1, answer + 1)
