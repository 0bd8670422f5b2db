"""What several tests of policies share."""

import sys
from pathlib import Path

import pytest

# Test folders are no packages; what several files here share is found by its name.
sys.path.insert(0, str(Path(__file__).parent))
pytest.register_assert_rewrite("stepped_fleet", "views")
