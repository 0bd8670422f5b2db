"""What holds for all tests."""

import os
import signal

from hypothesis import HealthCheck, settings

# A machine that is busy with other things is slow, and no test fails for that. A change is judged by the same
# examples every time; HYPOTHESIS_SEARCH=1 looks for new ones.
settings.register_profile(
    "any machine",
    deadline=None,
    derandomize="HYPOTHESIS_SEARCH" not in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("any machine")

# Who starts tests in the background of a shell has them ignore Ctrl-C, and so do the commands that they start and
# interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
