"""What the scheduler costs a plain request on an idle fleet: Python calls, not seconds."""

from statistics import median

import pytest

from benchmarks.micro.scheduler_step import Workload, calls, scheduler


@pytest.mark.parametrize("queue", ["dlpm", "vtc"])
@pytest.mark.parametrize("workers", [1, 8, 64])
def test_from_submit_to_settled_it_takes_at_most_200_calls_however_many_workers_there_are(workers, queue):
    assert median(calls(scheduler(1, workers, queue, "fairlead"), Workload(1), 200)) <= 200
