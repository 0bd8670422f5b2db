"""Opens the workload that a command line names.

    trace.jsonl                         a trace or request log, perhaps compressed
    trace.jsonl:block_tokens=16         its hash ids stand for 16 tokens each
    tot                                 a generator's name
    tot:clients=4,misbehaving=s1        with options
    trace.jsonl@arena.jsonl             the first's requests dealt to the second's clients

A path that exists is opened as it is, also if it contains a colon or an at sign.
"""

from pathlib import Path
from typing import Any

from router.lab.workload import Workload, WorkloadError
from router.lab.workloads.generators import SHAPES, generate
from router.lab.workloads.traces import read_trace
from router.lab.workloads.transforms import composed, faster, first


def open_workload(wanted: str, *, seed: int = 0, rate: float = 1.0, limit: int | None = None) -> Workload:
    """The workload, played `rate` times as fast, cut to its first `limit` requests. Raises WorkloadError."""
    workload = _opened(wanted, seed, limit)
    if limit is not None:
        workload = first(workload, limit)
    return workload if rate == 1.0 else faster(workload, rate)


def _opened(wanted: str, seed: int, limit: int | None) -> Workload:
    if _is_file(wanted):
        return read_trace(Path(wanted))
    prefixes, dealt, clients = wanted.partition("@")
    if dealt:
        return composed(_opened(prefixes, seed, limit), _opened(clients, seed, None), seed)
    name, _, text = wanted.partition(":")
    options = _options(wanted, text)
    if name in SHAPES:
        if limit is not None and not {"requests", "duration_s"} & options.keys():
            options["requests"] = max(limit, 1)
        return generate(name, seed, **options)
    if not _is_file(name):
        raise WorkloadError(
            f"there is no file `{name}`, and no generator of that name; generators are {', '.join(SHAPES)}"
        )
    block_tokens = options.pop("block_tokens", None)
    if options:
        raise WorkloadError(f"{name}: a file has no option `{next(iter(options))}`; known is block_tokens")
    if block_tokens is not None and not (block_tokens.isdecimal() and 0 < int(block_tokens) <= 2**20):
        raise WorkloadError(f"{name}: block_tokens should be a whole number from 1, not `{block_tokens}`")
    return read_trace(Path(name), block_tokens=None if block_tokens is None else int(block_tokens))


def _is_file(path: str) -> bool:
    try:
        return Path(path).is_file()
    except (OSError, ValueError):  # no name for a file: too long, or with a zero in it
        return False


def _options(wanted: str, text: str) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for option in filter(None, text.split(",")):
        key, given, value = option.partition("=")
        if not given:
            raise WorkloadError(f"`{wanted}`: option `{option}` should be key=value")
        options[key.strip()] = value.strip()
    return options
