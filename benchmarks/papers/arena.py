"""Fairness on the clients of Chatbot Arena, the trace of the VTC paper (arXiv 2401.00588, evaluation).

27 clients, 1,500 requests in 600 s, no prefixes; the trace is Ying1123/VTC-artifact's, given by its path. It is
played faster, on one simulated A100 that runs 32 sequences at once: the paper's worker is an A10G whose memory
holds about as many. *Light* clients are those that ask for less than an equal share of all service; of each the
median time is taken, and of these the mean. Nothing is left to chance in a trace, so in place of seeds there
are rates around the one in question.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

from benchmarks.papers.runner import Replay, Row, Runner
from router.lab.comparison import Source, load
from router.lab.driver import replay
from router.lab.report import e2e_s, ttft_s
from router.lab.results import RequestResult
from router.lab.setup import make_setup

QUEUES = ("fcfs", "vtc", "dlpm")
RATES = (7.0, 8.0, 9.0)
"""How many times as fast as it was recorded."""
SEQUENCES = 32
PROFILE = "a100-llama-3.1-8b"


def reproduce(runner: Runner, trace: Path, *, rates: Sequence[float] = RATES) -> dict[str, Any]:
    """Median times of light and of other clients, by rate and queue."""
    settings = {"engine.max_num_seqs": SEQUENCES, "queue_requests": 10**6, "queue_wait_s": 1e6}
    setups = {queue: make_setup(queue=queue, workers=1, profile=PROFILE, settings=settings) for queue in QUEUES}
    tasks = [Replay(Source(str(trace), rate=rate), setup) for rate in rates for setup in setups.values()]
    rows = iter(runner.run(measure_clients, tasks))
    table: dict[float, dict[str, Row]] = {}
    for rate in rates:
        runner.tell(f"arena: {rate:g} times as fast")
        table[rate] = {queue: next(rows) for queue in QUEUES}
    return {"rates": table}


def measure_clients(task: Replay) -> Row:
    """Of light clients and of the others: how many, and the mean of their median times."""
    asked: Mapping[str, list[RequestResult]] = defaultdict(list)
    for one in replay(load(task.source), task.setup).results:
        asked[one.client].append(one)
    service = {client: sum(one.service for one in own) for client, own in asked.items()}
    equal = sum(service.values()) / len(service)
    groups: dict[str, list[list[RequestResult]]] = {"light": [], "others": []}
    for client, own in asked.items():
        groups["light" if service[client] < equal else "others"].append(own)
    return {
        name: {
            "clients": len(members),
            "ttft_s": fmean(median(filter(None, map(ttft_s, own))) for own in members),
            "e2e_s": fmean(median(filter(None, map(e2e_s, own))) for own in members),
        }
        for name, members in groups.items()
    }
