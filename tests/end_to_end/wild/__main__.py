"""`python -m tests.end_to_end.wild`: mutated requests and answers from a seed, on uvloop, and what came of them.

Exits with 1 if anything came of them that should not have.
"""

import argparse
import sys

import uvloop

from tests.end_to_end.wild.storm import storm_of_answers, storm_of_requests


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.end_to_end.wild", description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000, help="mutated requests (default %(default)s)")
    parser.add_argument("--answers", type=int, default=10_000, help="mutated answers (default %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, help="only the case of this number, to look into it")
    given = parser.parse_args()
    tallies = []
    for storm, count in ((storm_of_requests, given.requests), (storm_of_answers, given.answers)):
        if count:
            tallies.append(uvloop.run(storm(count, given.seed, only=given.only)))
            sys.stdout.write(tallies[-1].text() + "\n")
            sys.stdout.flush()
    return 0 if all(tally.sound() for tally in tallies) else 1


if __name__ == "__main__":
    sys.exit(main())
