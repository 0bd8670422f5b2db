"""The files of `deploy/`, without Docker."""

import sys
from pathlib import Path

# Test folders are no packages; what several files here share is found by its name.
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "end_to_end")]
