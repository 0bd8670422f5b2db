"""Every policy that is built in, by its name in a configuration.

Policies of other packages join them in `router/config/policy_catalog.py`, which makes an `Entry` of each.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from policies.knowledge import Knowledge
from policies.orders import (
    amax,
    amin,
    dlpm,
    fcfs,
    lpm,
    mc_sf,
    priority,
    shortest_first,
    sorted_f,
    svf,
    svf_1bit,
    vtc,
)
from policies.placements import (
    cache_aware,
    consistent_hash,
    d2lpm,
    dist_sched,
    fairlead,
    kv_cost,
    least_loaded,
    lmetric,
    power_of_two,
    preble,
    random_choice,
    round_robin,
    session_affinity,
    ttft_feasible,
    weighted_scores,
)
from policies.protocol import OrderPolicy, PlacementPolicy

Policy = TypeVar("Policy", OrderPolicy, PlacementPolicy)

DEFAULT_PLACEMENT = "fairlead"
DEFAULT_QUEUE = "dlpm"


@dataclass(frozen=True, slots=True)
class Entry(Generic[Policy]):
    """One policy: its name, the question it answers, its settings (a frozen dataclass), and how to build it."""

    name: str
    question: str
    source: str
    """Where the rule comes from: a paper and its algorithm, or a project that uses it."""
    settings: type[Any]
    make: Callable[[Any, Knowledge], Policy]
    wants_pairs: bool = False
    """Its point is to choose between colocated workers and prefill/decode pairs."""
    description: str = ""
    """The docstring of the file that it stands in."""

    def build(self, settings: Any = None, knowledge: Knowledge | None = None) -> Policy:
        """A fresh policy; by default with its default settings and knowledge of its own."""
        return self.make(self.settings() if settings is None else settings, knowledge or Knowledge())


def placement_policies() -> dict[str, Entry[PlacementPolicy]]:
    """Where a request runs."""
    entries: tuple[Entry[PlacementPolicy], ...] = (
        _entry("round_robin", round_robin.Settings, lambda s, _: round_robin.RoundRobin(s)),
        _entry("random", random_choice.Settings, random_choice.RandomChoice),
        _entry("least_loaded", least_loaded.Settings, lambda s, _: least_loaded.LeastLoaded(s)),
        _entry("power_of_two", power_of_two.Settings, power_of_two.PowerOfTwo),
        _entry("cache_aware", cache_aware.Settings, lambda s, _: cache_aware.CacheAware(s)),
        _entry("lmetric", lmetric.Settings, lambda s, _: lmetric.LMetric(s)),
        _entry("kv_cost", kv_cost.Settings, lambda s, _: kv_cost.KvCost(s)),
        _entry("d2lpm", d2lpm.Settings, d2lpm.D2lpm),
        _entry("dist_sched", dist_sched.Settings, lambda s, _: dist_sched.DistSched(s), wants_pairs=True),
        _entry("preble", preble.Settings, lambda s, _: preble.Preble(s)),
        _entry("weighted_scores", weighted_scores.Settings, lambda s, _: weighted_scores.WeightedScores(s)),
        _entry("ttft_feasible", ttft_feasible.Settings, lambda s, _: ttft_feasible.TtftFeasible(s)),
        _entry("consistent_hash", consistent_hash.Settings, lambda s, _: consistent_hash.ConsistentHash(s)),
        _entry("session_affinity", session_affinity.Settings, lambda s, _: session_affinity.SessionAffinity(s)),
        _entry("fairlead", fairlead.Settings, fairlead.Fairlead),
    )
    return {entry.name: entry for entry in entries}


def queue_policies() -> dict[str, Entry[OrderPolicy]]:
    """Who is next."""
    entries: tuple[Entry[OrderPolicy], ...] = (
        _entry("fcfs", fcfs.Settings, lambda s, _: fcfs.Fcfs(s)),
        _entry("dlpm", dlpm.Settings, dlpm.Dlpm),
        _entry("lpm", lpm.Settings, lpm.Lpm),
        _entry("priority", priority.Settings, lambda s, _: priority.Priority(s)),
        _entry("vtc", vtc.Settings, vtc.Vtc),
        _entry("shortest_first", shortest_first.Settings, lambda s, _: shortest_first.ShortestFirst(s)),
        _entry("mc_sf", mc_sf.Settings, lambda s, _: mc_sf.McSf(s)),
        _entry("sorted_f", sorted_f.Settings, lambda s, _: sorted_f.SortedF(s)),
        _entry("svf", svf.Settings, lambda s, _: svf.Svf(s)),
        _entry("svf_1bit", svf_1bit.Settings, lambda s, _: svf_1bit.OneBitSvf(s)),
        _entry("amax", amax.Settings, lambda s, _: amax.AMax(s)),
        _entry("amin", amin.Settings, lambda s, _: amin.AMin(s)),
    )
    return {entry.name: entry for entry in entries}


def _entry(
    name: str, settings: type[Any], make: Callable[[Any, Knowledge], Policy], *, wants_pairs: bool = False
) -> Entry[Policy]:
    text = inspect.getdoc(inspect.getmodule(settings)) or ""
    return Entry(name, question_of(text), source_of(text), settings, make, wants_pairs, text)


def question_of(description: str) -> str:
    """The question that a policy's file opens with; where it asks none, its first line."""
    text = " ".join(description.split())
    question, mark, _ = text.partition("?")
    return question + mark if mark else description.partition("\n")[0]


def source_of(description: str) -> str:
    """The line of that docstring that begins with `Source:`, without the word."""
    lines = description.splitlines()
    return next((line.removeprefix("Source:").strip() for line in lines if line.startswith("Source:")), "")
