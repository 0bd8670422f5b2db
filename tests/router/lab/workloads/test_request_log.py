"""The gateway's own log as a workload."""

import io
import json
from array import array

import pytest

from router.lab.workload import WorkloadError
from router.lab.workloads.trace_lines import BrokenLine
from router.lab.workloads.traces import read_trace
from router.observability.log_writer import Lines
from router.observability.request_log import RequestLog

STARTED = {"time": "2026-01-01T00:00:00Z", "level": "info", "event": "listening", "logger": "router.up"}


def written(path, *ended, first=STARTED):
    """A log as the gateway writes it: (moment of the end, record) for each request."""
    stream, now = io.BytesIO(), [0.0]
    log = RequestLog(Lines(stream), text=False, clock=lambda: now[0])
    for at, record in ended:
        now[0] = at
        log.write(record)
    path.write_bytes((json.dumps(first) + "\n").encode() * (first is not None) + stream.getvalue())
    return path


def record(client="a", e2e_s=1.0, tokens=100, output=20, **rest):
    counts = {"input_tokens": tokens, "output_tokens": output, "cached_tokens": 0}
    return {"request_id": "r", "outcome": "completed", "client": client, "e2e_s": e2e_s, **counts, **rest}


def units(request):
    return array("Q", request.key).tolist()


def test_a_request_arrived_its_duration_before_its_line(tmp_path):
    path = written(
        tmp_path / "day.log", (1010.0, record("b", 2.0, 30, 4)), (1011.0, record("a", 9.5)), (1012.0, record("b"))
    )
    workload = read_trace(path)
    assert [request.client for request in workload.requests] == ["a", "b", "b"]
    assert [request.at for request in workload.requests] == pytest.approx([0.0, 6.5, 9.5])
    assert (workload.requests[1].input_tokens, workload.requests[1].output_tokens) == (30, 4)
    assert workload.block_tokens == 16
    assert workload.warnings == (), "a log is in the order of the ends, that is no mistake"
    assert not set(units(workload.requests[0])) & set(units(workload.requests[2]))


def test_logged_prefixes_keep_what_prompts_share(tmp_path):
    ends = [
        (10.0, record(tokens=1000, prefix=[1, 2, 3], prefix_tokens=256)),
        (11.0, record(tokens=2000, prefix=[1, 2, 9], prefix_tokens=256)),
        (12.0, record(tokens=300)),
    ]
    workload = read_trace(written(tmp_path / "log", *ends))
    one, other, unnamed = map(units, workload.requests)
    assert workload.block_tokens == 256
    assert (one, other[:3], len(other), len(unnamed)) == ([1, 2, 3], [1, 2, 9], 7, 1)


def test_requests_without_a_count_are_left_out_with_a_warning(tmp_path):
    rejected = {"outcome": "rejected", "client": "a", "e2e_s": 0.1}
    path = written(tmp_path / "log", (1.0, rejected), (2.0, record()), (3.0, rejected | {"input_tokens": 5}))
    workload = read_trace(path)
    assert len(workload.requests) == 1
    assert workload.warnings == (
        f"{path}: 2 of 3 requests ended without a count of their tokens and are left out",
    )


def test_a_log_without_requests_is_refused(tmp_path):
    with pytest.raises(WorkloadError, match=r"there is no request in it$"):
        read_trace(written(tmp_path / "log"))
    with pytest.raises(WorkloadError, match=r"there is no request in it; .*1 of 1 requests ended without a count"):
        read_trace(written(tmp_path / "log", (1.0, {"e2e_s": 1.0})))


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (record(e2e_s="long"), "e2e_s should be a number, not 'long'"),
        (record(tokens=-1), "input_tokens should be a whole number from 1 to 2147483647, not -1"),
        (record(prefix=[1]), "prefix_tokens is missing"),
        (record(prefix=[1], prefix_tokens=64), "prefix_tokens is 64, but 256 in the lines before"),
        (record(prefix=[-1], tokens=999, prefix_tokens=256), "prefix should be whole numbers from 0 to 2**64 - 1"),
        (record(prefix=7, prefix_tokens=256), "prefix should be a list of whole numbers, not 7"),
        ({**record(), "time": "noon"}, "time should be a date and time, not 'noon'"),
    ],
)
def test_a_broken_line_names_file_line_and_reason(tmp_path, broken, reason):
    good = record(prefix=[1], prefix_tokens=256)
    path = written(tmp_path / "log", (1.0, good), (2.0, broken))
    with pytest.raises(BrokenLine) as caught:
        read_trace(path)
    assert str(caught.value) == f"{path}, line 3: {reason}"


def test_a_prefix_unit_that_makes_no_sense_is_a_broken_line(tmp_path):
    path = written(tmp_path / "log", (1.0, record(prefix=[1], prefix_tokens=0)))
    with pytest.raises(BrokenLine, match="line 2: prefix_tokens should be a whole number from 1"):
        read_trace(path)


def test_the_log_for_people_is_no_trace(tmp_path):
    stream = io.BytesIO()
    RequestLog(Lines(stream), text=True).write(record())
    path = tmp_path / "log"
    path.write_bytes(stream.getvalue())
    with pytest.raises(WorkloadError, match="the gateway's request log as JSON lines"):
        read_trace(path)
