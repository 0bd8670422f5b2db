"""vLLM's Prometheus page -> one `Scrape` per engine.

A page is mostly histogram buckets that are not read here; only the lines of the families below are split at all.
That keeps a page of 1 MB at about 1 ms, where a complete parser of the format takes over 100 ms of an event
loop that also carries token streams.

The page is another program's, in any of its versions, so a family that is absent leaves its default, an older
name stands in for a newer one, and a line that cannot be read is passed over. Only a text without a single
readable sample is an error.
"""

import math
import re
from collections.abc import Collection
from dataclasses import dataclass, field, replace

from workers.fleet.worker import Scrape

_RUNNING = "vllm:num_requests_running"
_WAITING = "vllm:num_requests_waiting"
_SLEEP = "vllm:engine_sleep_state"
_PREEMPTIONS = "vllm:num_preemptions_total"
_CACHE_CONFIG = "vllm:cache_config_info"
_PROCESS_START = "process_start_time_seconds"
# Exported by engines with the NIXL connector, from their start on.
_NIXL = "vllm:nixl_xfer_time_seconds_count"
# Newest name first: some versions export two names of one figure, which must not be added up.
_KV_USAGE = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc")
_QUERIES = ("vllm:prefix_cache_queries_total", "vllm:gpu_prefix_cache_queries_total")
_HITS = ("vllm:prefix_cache_hits_total", "vllm:gpu_prefix_cache_hits_total")

_SUMMED = frozenset({_RUNNING, _WAITING, _PREEMPTIONS, _NIXL, *_QUERIES, *_HITS})
_HIGHEST = frozenset(_KV_USAGE)
_WANTED = (*_SUMMED, *_HIGHEST, _SLEEP, _CACHE_CONFIG, _PROCESS_START)

_LINES_TO_JUDGE_BY = 1000
"""A text without wanted families is a metrics page when a sample stands in this many of its first lines."""

_SAMPLE = re.compile(r"([A-Za-z_:][\w:]*)(?:\{(.*)\})?[ \t]+(\S+)(?:[ \t]+-?\d+)?[ \t\r]*")
# Anchored to its comma: a search that may begin anywhere is quadratic on a hostile line.
_LABEL = re.compile(r'(?:^|,)\s*(\w+)="((?:[^"\\]|\\.)*)"')


class NotMetricsError(ValueError):
    """The text is no Prometheus page: a login form, JSON, nothing at all."""


@dataclass(slots=True)
class _Engine:
    """What the page says of one engine: figures by family, and the labels of its cache configuration."""

    figures: dict[str, float] = field(default_factory=dict)
    cache: dict[str, str] = field(default_factory=dict)

    def first(self, *names: str) -> float:
        return next((self.figures[name] for name in names if name in self.figures), 0.0)


def parse_metrics(text: str, at: float) -> dict[int, Scrape]:
    """Read a page taken at `at`: scrapes by rank, empty where the server exports no figures of an engine.

    Figures of several `model_name` labels are added up. A page without `engine` labels speaks of rank 0.
    Raises NotMetricsError.
    """
    engines: dict[int, _Engine] = {}
    shared_cache: dict[str, str] = {}
    started: float | None = None
    for name, labels, value in _samples(text):
        if name == _PROCESS_START:
            started = value
        elif name == _CACHE_CONFIG and "engine" not in labels:
            shared_cache = labels
        else:
            rank = _whole(labels.get("engine", "0"))
            if rank is not None:
                _note(engines.setdefault(rank, _Engine()), name, labels, value)
    return {
        rank: _scrape(engine, engine.cache or shared_cache, started, at)
        for rank, engine in sorted(engines.items())
        if engine.figures
    }


def merge(scrapes: Collection[Scrape]) -> Scrape:
    """Add up engines that are addressed as one worker. Raises ValueError when there are none."""
    if not scrapes:
        raise ValueError("nothing to add up")
    capacities = [s.kv_tokens for s in scrapes if s.kv_tokens is not None]
    return replace(
        next(iter(scrapes)),
        running=sum(s.running for s in scrapes),
        waiting=sum(s.waiting for s in scrapes),
        kv_usage=max(s.kv_usage for s in scrapes),
        kv_tokens=sum(capacities) if capacities else None,
        prefix_queries=sum(s.prefix_queries for s in scrapes),
        prefix_hits=sum(s.prefix_hits for s in scrapes),
        preemptions=sum(s.preemptions for s in scrapes),
        nixl=any(s.nixl for s in scrapes),
        awake=any(s.awake for s in scrapes),
    )


def _samples(text: str) -> list[tuple[str, dict[str, str], float]]:
    """Return the readable samples of the wanted families."""
    lines = text.split("\n")
    wanted = (_sample(line) for line in lines if line.startswith(_WANTED))
    found = [sample for sample in wanted if sample is not None]
    if not found and not any(map(_sample, lines[:_LINES_TO_JUDGE_BY])):
        raise NotMetricsError("the answer is not a Prometheus metrics page")
    return found


def _sample(line: str) -> tuple[str, dict[str, str], float] | None:
    match = _SAMPLE.fullmatch(line)
    if match is None:
        return None
    name, labels, number = match.groups()
    try:
        value = float(number)
    except ValueError:
        return None
    # NaN and infinities are legal samples, and nothing that could be counted with.
    return (name, dict(_LABEL.findall(labels or "")), value) if math.isfinite(value) else None


def _note(engine: _Engine, name: str, labels: dict[str, str], value: float) -> None:
    figures = engine.figures
    if name in _SUMMED:
        figures[name] = figures.get(name, 0.0) + value
    elif name in _HIGHEST or (name == _SLEEP and labels.get("sleep_state") == "awake"):
        figures[name] = max(figures.get(name, 0.0), value)
    elif name == _CACHE_CONFIG:
        engine.cache = labels


def _scrape(engine: _Engine, cache: dict[str, str], started: float | None, at: float) -> Scrape:
    block_size = _whole(cache.get("block_size", ""))
    return Scrape(
        at=at,
        running=int(engine.first(_RUNNING)),
        waiting=int(engine.first(_WAITING)),
        kv_usage=min(1.0, max(0.0, engine.first(*_KV_USAGE))),
        kv_tokens=_kv_tokens(cache, block_size),
        block_size=block_size,
        prefix_queries=int(engine.first(*_QUERIES)),
        prefix_hits=int(engine.first(*_HITS)),
        preemptions=int(engine.first(_PREEMPTIONS)),
        nixl=_NIXL in engine.figures,
        awake=engine.figures.get(_SLEEP, 1.0) > 0.0,
        process_started=started,
    )


def _kv_tokens(cache: dict[str, str], block_size: int | None) -> int | None:
    """Return vLLM's own figure where it gives one: blocks times size is wrong for models of mixed attention."""
    told = _whole(cache.get("kv_cache_size_tokens", ""))
    if told:
        return told
    blocks = _whole(cache.get("num_gpu_blocks", ""))
    return blocks * block_size if blocks and block_size else None


def _whole(text: str) -> int | None:
    """Read a whole number; labels that are not set say "None"."""
    return int(text) if text.isdecimal() and len(text) <= 18 else None
