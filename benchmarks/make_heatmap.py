"""Make the heatmap that ships: the simulator's profile, in virtual time.

    python -m benchmarks.make_heatmap                          prints the map, writes router/heatmap/<profile>.json
    python -m benchmarks.make_heatmap --profile a100-llama-3.1-8b --out a100.json

Either side has two workers: two colocated ones, or one for prefill and one for decode, whose KV goes from one to
the other in the time that the profile says. Both run under the scheduler that serves (least loaded, first come
first served), so that the map says what the choice is worth in this router. `fairlead heatmap measure` does the
same with real workers.
"""

import argparse
import time
from array import array
from itertools import count
from pathlib import Path

from router import __version__
from router.heatmap.file import SHIPPED, write_heatmap
from router.heatmap.show import print_heatmap
from router.heatmap.sweep import Findings, Shape, Side, Sweep, side
from router.lab.driver import replay
from router.lab.setup import Setup, make_setup
from router.lab.workload import Request, Workload

_WORKERS = 2
_BLOCK_TOKENS = 16
_SIDES = {"colocated": ("2xmixed", "never"), "disaggregated": ("1xprefill,1xdecode", "always")}


def setups(profile: str) -> dict[str, Setup]:
    """Both sides."""
    return {
        name: make_setup(
            placement="least_loaded",
            queue="fcfs",
            roles=roles,
            profile=profile,
            settings={"disaggregate": disaggregate, "queue_wait_s": 1e6, "queue_requests": 10**6},
        )
        for name, (roles, disaggregate) in _SIDES.items()
    }


def run(shape: Shape, setup: Setup) -> Side:
    """One batch on one side; no two prompts share anything."""
    names = count(1)
    blocks = shape.prefill_tokens // _BLOCK_TOKENS
    requests = [
        Request(
            at,
            "client",
            array("Q", [next(names) for _ in range(blocks)]).tobytes(),
            shape.prefill_tokens,
            shape.output_tokens,
        )
        for at in shape.arrivals
    ]
    records = replay(Workload("batch", _BLOCK_TOKENS, requests, {"client": 1.0}), setup).results
    return side(shape.arrivals, [record.ended for record in records if record.ended is not None])


def measure(sweep: Sweep, profile: str) -> Findings:
    """Every batch on both sides."""
    findings = Findings(sweep)
    sides = setups(profile)
    for place in sweep.places():
        shape = sweep.shape(place, _WORKERS)
        findings.add(place, shape, run(shape, sides["colocated"]), run(shape, sides["disaggregated"]))
    return findings


def main() -> None:
    """The command."""
    options = argparse.ArgumentParser(description="Make a heatmap from a profile of the simulator.")
    options.add_argument("--profile", default=SHIPPED)
    options.add_argument("--requests", type=int, default=Sweep().requests, help="of a batch, per worker")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--out", type=Path, help="default: the place of the one that ships")
    asked = options.parse_args()
    out = asked.out or Path(__file__).parents[1] / "router" / "heatmap" / f"{asked.profile}.json"
    sweep = Sweep(requests=asked.requests, seed=asked.seed, most_tokens=131_072)
    started = time.perf_counter()
    heatmap = measure(sweep, asked.profile).heatmap(
        {
            "model": "Llama 3.1 8B",
            "profile": asked.profile,
            "hardware": "simulated, see workers/simulator/profiles.py",
            "workers_per_side": _WORKERS,
            "requests_per_worker": sweep.requests,
            "seed": sweep.seed,
            "versions": {"fairlead": __version__},
        }
    )
    write_heatmap(out, heatmap)
    print_heatmap(heatmap)
    print(f"wrote {out} in {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
