"""Every policy by the name that a config uses; nothing else knows the list."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from policies.knowledge import Knowledge
from policies.placement import (
    cache_aware,
    fairlead,
    kv_cost,
    least_loaded,
    lmetric,
    power_of_two,
    random_choice,
    round_robin,
)
from policies.protocol import PlacementPolicy, QueuePolicy
from policies.queue import dlpm, fcfs, lpm, priority

Policy = TypeVar("Policy", PlacementPolicy, QueuePolicy)

DEFAULT_PLACEMENT = "fairlead"
DEFAULT_QUEUE = "dlpm"


@dataclass(frozen=True, slots=True)
class Entry(Generic[Policy]):
    """One policy: its name, the question it answers, its settings (a frozen dataclass), and how to build it."""

    name: str
    question: str
    settings: type[Any]
    make: Callable[[Any, Knowledge], Policy]

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
        _entry("fairlead", fairlead.Settings, fairlead.Fairlead),
    )
    return {entry.name: entry for entry in entries}


def queue_policies() -> dict[str, Entry[QueuePolicy]]:
    """Who is next."""
    entries: tuple[Entry[QueuePolicy], ...] = (
        _entry("fcfs", fcfs.Settings, lambda s, _: fcfs.Fcfs(s)),
        _entry("dlpm", dlpm.Settings, dlpm.Dlpm),
        _entry("lpm", lpm.Settings, lpm.Lpm),
        _entry("priority", priority.Settings, priority.Priority),
    )
    return {entry.name: entry for entry in entries}


def _entry(name: str, settings: type[Any], make: Callable[[Any, Knowledge], Policy]) -> Entry[Policy]:
    return Entry(name, _question(settings), settings, make)


def _question(settings: type[Any]) -> str:
    """The question that the policy's file opens with."""
    module = inspect.getmodule(settings)
    text = " ".join((inspect.getdoc(module) or "").split())
    return text.partition("?")[0] + "?"
