"""Workloads as a command line names them."""

import json

import pytest

from router.lab.workload import WorkloadError
from router.lab.workloads.generators import generate
from router.lab.workloads.open_workload import open_workload


@pytest.fixture
def trace(tmp_path, monkeypatch):
    """Writes a trace of a number of requests, ten a second, into the working directory; returns its name."""
    monkeypatch.chdir(tmp_path)

    def write(name="trace.jsonl", count=10, **rest):
        lines = [
            json.dumps({"timestamp": 100 * n, "input_length": 100, "output_length": 1, **rest})
            for n in range(count)
        ]
        (tmp_path / name).write_text("\n".join(lines))
        return name

    return write


def test_a_generator_is_opened_by_name_with_options():
    opened = open_workload("tot:clients=3, branches=1,misbehaving=s1", seed=5)
    assert list(opened.requests) == list(generate("tot", 5, clients=3, branches=1, misbehaving="s1").requests)


def test_a_limit_is_the_number_of_requests_of_a_generator():
    assert len(open_workload("tot", limit=5000).requests) == 5000
    assert len(open_workload("tot:requests=20", limit=5000).requests) == 20
    assert len(open_workload("tot:requests=20", limit=5).requests) == 5


def test_a_trace_is_opened_by_path_with_rate_and_limit(trace):
    workload = open_workload(trace(), rate=2, limit=4)
    assert [request.at for request in workload.requests] == pytest.approx([0, 0.05, 0.1, 0.15])


def test_a_file_is_taken_as_it_stands_whatever_its_name(trace):
    assert len(open_workload(trace("tot@a:b=c", count=3)).requests) == 3


def test_a_directory_does_not_stand_before_a_generator(trace, tmp_path):
    (tmp_path / "agents").mkdir()
    trace()
    assert open_workload("agents", limit=3).name == "agents"


def test_a_trace_says_what_its_ids_stand_for(trace):
    name = trace(hash_ids=[1, 2, 3])
    assert open_workload(f"{name}:block_tokens=32").block_tokens == 32


def test_two_names_make_a_composition(trace):
    workload = open_workload(f"chat:requests=50@{trace(client='solo')}", seed=1)
    assert workload.name == "composed(chat dealt to the clients of trace.jsonl)"
    assert {request.client for request in workload.requests} == {"solo"}


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("nothing", "there is no file `nothing`, and no generator of that name; generators are tot, judge, "),
        ("x" * 5000, "there is no file `xxx"),
        ("tot\0", "there is no file `tot"),
        ("tot:clients", "`tot:clients`: option `clients` should be key=value"),
        ("tot:colour=red", "`tot` has no option `colour`; known are "),
        ("tot@nothing", "there is no file `nothing`"),
        ("trace.jsonl:clients=2", "trace.jsonl: a file has no option `clients`; known is block_tokens"),
        ("trace.jsonl:block_tokens=0", "trace.jsonl: block_tokens should be a whole number from 1, not `0`"),
        ("trace.jsonl:block_tokens=x", "trace.jsonl: block_tokens should be a whole number from 1, not `x`"),
    ],
)
def test_what_cannot_be_opened_says_why(trace, wanted, message):
    trace()
    with pytest.raises(WorkloadError) as caught:
        open_workload(wanted)
    assert str(caught.value).startswith(message)


def test_a_limit_below_one_is_refused():
    with pytest.raises(WorkloadError, match="at least 1, not 0"):
        open_workload("tot", limit=0)
