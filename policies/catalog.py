"""Every policy by the name that a config uses; nothing else knows the list."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from policies.placement import cache_aware, least_loaded, round_robin
from policies.protocol import PlacementPolicy, QueuePolicy
from policies.queue import fcfs

Policy = TypeVar("Policy", PlacementPolicy, QueuePolicy)

DEFAULT_PLACEMENT = "cache_aware"
DEFAULT_QUEUE = "fcfs"


@dataclass(frozen=True, slots=True)
class Entry(Generic[Policy]):
    """One policy: its name, the question it answers, its settings (a frozen dataclass), and how to build it."""

    name: str
    question: str
    settings: type[Any]
    build: Callable[[Any], Policy]


def placement_policies() -> dict[str, Entry[PlacementPolicy]]:
    """Where a request runs."""
    entries = (
        _placement("round_robin", round_robin.RoundRobin, round_robin.Settings),
        _placement("least_loaded", least_loaded.LeastLoaded, least_loaded.Settings),
        _placement("cache_aware", cache_aware.CacheAware, cache_aware.Settings),
    )
    return {entry.name: entry for entry in entries}


def queue_policies() -> dict[str, Entry[QueuePolicy]]:
    """Who is next."""
    entries = (_queue("fcfs", fcfs.Fcfs, fcfs.Settings),)
    return {entry.name: entry for entry in entries}


def _placement(name: str, build: Callable[[Any], PlacementPolicy], settings: type[Any]) -> Entry[PlacementPolicy]:
    return Entry(name, _question(settings), settings, build)


def _queue(name: str, build: Callable[[Any], QueuePolicy], settings: type[Any]) -> Entry[QueuePolicy]:
    return Entry(name, _question(settings), settings, build)


def _question(settings: type[Any]) -> str:
    """The question that the policy's file opens with."""
    module = inspect.getmodule(settings)
    text = inspect.getdoc(module) or ""
    return text.partition("?")[0] + "?"
