"""The optima of small cases, kept: what the best schedule of a case is does not depend on what serves.

    python -m benchmarks.papers.optima [--again]

solves every small case (`small_cases.py`) that is not in `results/optima.json` yet and adds it: by kind, seed and
number of the case the sum of completion times of the best schedule found, and what none is better than; equal
where the optimum is proven. It may be interrupted and goes on where it was. A benchmark solves a case that is not
in the file itself, when it is asked for.
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

FILE = Path(__file__).parent / "results" / "optima.json"


@cache
def kept() -> dict[str, tuple[int, int]]:
    """Total and bound by the name of a case; empty where there is no file."""
    if not FILE.exists():
        return {}
    return {name: (total, bound) for name, (total, bound) in json.loads(FILE.read_text()).items()}


def main() -> None:
    """Solve, write after each case; progress on standard error."""
    from benchmarks.papers import small_cases  # noqa: PLC0415  # it reads what is kept here
    from benchmarks.papers.runner import Runner  # noqa: PLC0415

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.papers.optima",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seed", type=int, default=0, help="the first one (%(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="how many (%(default)s)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes (%(default)s)")
    parser.add_argument("--again", action="store_true", help="solve the cases in the file anew")
    chosen = parser.parse_args()
    found = {} if chosen.again else dict(kept())
    cases = [
        case
        for number in range(small_cases.INSTANCES)
        for seed in range(chosen.seed, chosen.seed + chosen.seeds)
        for kind in small_cases.KINDS
        if (case := small_cases.Small(kind, seed, number)).name not in found
    ]
    with Runner(chosen.jobs, lambda text: print(text, file=sys.stderr, flush=True)) as runner:
        solved = runner.run(small_cases.solved, cases)
        for done, (case, (total, bound)) in enumerate(zip(cases, solved, strict=True), 1):
            found[case.name] = total, bound
            write(found)
            known = "proven" if total == bound else f"at least {bound}"
            runner.tell(f"{done} of {len(cases)}: {case.name}: {total}, {known}")


def write(found: Mapping[str, tuple[int, int]]) -> None:
    """Replace the file, a case a line."""
    FILE.parent.mkdir(exist_ok=True)
    lines = (f"{json.dumps(name)}: {json.dumps(pair)}" for name, pair in sorted(found.items()))
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
