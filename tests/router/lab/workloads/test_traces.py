"""Trace files as workloads."""

import gzip
import json
from array import array

import pytest

from router.lab.workload import WorkloadError
from router.lab.workloads.trace_lines import BrokenLine
from router.lab.workloads.traces import read_trace

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


@pytest.fixture
def trace(tmp_path):
    """Writes lines (texts, or objects as JSON) to a file, returns its path."""

    def write(*lines, name="trace.jsonl"):
        path = tmp_path / name
        path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
        return path

    return write


def line(at=0, tokens=100, output=10, **rest):
    return {"timestamp": at, "input_length": tokens, "output_length": output, **rest}


def units(request):
    return array("Q", request.key).tolist()


def test_a_mooncake_line_gives_its_moment_its_lengths_and_its_full_blocks(trace):
    path = trace(line(0, 6758, 500, hash_ids=list(range(14))), line(1500, 600, 3, hash_ids=[0, 99]))
    workload = read_trace(path)
    first, second = workload.requests
    assert workload.name == "trace.jsonl"
    assert workload.block_tokens == 512
    assert workload.clients == ("trace",)
    assert (first.at, first.input_tokens, first.output_tokens) == (0.0, 6758, 500)
    assert units(first) == list(range(13)), "the last id names a partial block"
    assert (second.at, units(second), second.weight) == (1.5, [0], 1.0)
    assert workload.warnings == ()


def test_a_plain_line_has_client_session_and_priority(trace):
    path = trace(line(client="a", session="s", priority=-2), line(5, client="b"), line(6, client="a", session="s"))
    workload = read_trace(path)
    assert [request.client for request in workload.requests] == ["a", "b", "a"]
    assert [request.session for request in workload.requests] == ["s", None, "s"]
    assert [request.priority for request in workload.requests] == [-2, 0, 0]
    assert workload.weights == {"a": 1.0, "b": 1.0}


def test_prompts_without_ids_are_like_no_other_and_have_the_engine_s_blocks(trace):
    workload = read_trace(trace(line(tokens=100), line(tokens=100), line(tokens=7)))
    keys = [units(request) for request in workload.requests]
    assert workload.block_tokens == 16
    assert [len(key) for key in keys] == [6, 6, 0]
    assert not set(keys[0]) & set(keys[1])


def test_ids_that_name_only_the_beginning_leave_the_rest_unique(trace):
    workload = read_trace(trace(line(tokens=100), *[line(tokens=2048, hash_ids=[4, 5])] * 2))
    nameless, one, other = map(units, workload.requests)
    assert workload.block_tokens == 512, "one line with ids is enough"
    assert nameless == []
    assert one[:2] == other[:2] == [4, 5]
    assert len(one) == 4
    assert not set(one[2:]) & set(other[2:])


def test_block_tokens_says_what_an_id_stands_for(trace):
    workload = read_trace(trace(line(tokens=100, hash_ids=list(range(7)))), block_tokens=16)
    assert units(workload.requests[0]) == [0, 1, 2, 3, 4, 5]


def test_azure_s_csv_is_read_by_its_columns(trace):
    path = trace(
        "GeneratedTokens,TIMESTAMP,ContextTokens",
        "10,2023-11-16 18:17:03.9799600,4808",
        "8,2023-11-16 18:17:04.0319600,3180",
    )
    requests = read_trace(path).requests
    assert [(request.input_tokens, request.output_tokens) for request in requests] == [(4808, 10), (3180, 8)]
    assert [request.at for request in requests] == pytest.approx([0.0, 0.052], abs=1e-5)


def test_a_compressed_file_is_read_and_its_name_loses_the_ending(tmp_path):
    path = tmp_path / "day.csv.gz"
    path.write_bytes(gzip.compress(("\ufeff" + AZURE + "2024-05-10 00:00:00.5+00:00,5,0\r\n").encode()))
    workload = read_trace(path)
    assert workload.name == "day.csv"
    assert workload.requests[0].output_tokens == 1, "the first token is made with the prefill"


def test_time_begins_with_the_first_request_and_blank_lines_do_not_count(trace):
    workload = read_trace(trace("", line(1_700_000_000_000), "", line(1_700_000_000_250)))
    assert [request.at for request in workload.requests] == pytest.approx([0.0, 0.25])


def test_times_that_run_backwards_are_sorted_with_a_warning(trace):
    path = trace(line(1000, 1), line(500, 2), line(2000, 3), line(500, 4), line(100, 5))
    workload = read_trace(path)
    assert [request.input_tokens for request in workload.requests] == [5, 2, 4, 1, 3]
    assert [request.at for request in workload.requests] == pytest.approx([0, 0.4, 0.4, 0.9, 1.9])
    assert workload.warnings == (
        f"{path}: time runs backwards 3 times, first at line 2; its requests are sorted by time",
    )
    rows = ["2023-11-16 18:17:04,1,1", "2023-11-16 18:17:03,2,1"]
    csv = read_trace(trace(AZURE.strip(), *rows, name="a.csv"))
    assert "time runs backwards 1 times, first at line 3" in csv.warnings[0]


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ('{"timestamp": 1', "not valid JSON: "),
        ("[1, 2]", "should be a JSON object"),
        ({"timestamp": 1, "input_length": 5}, "output_length is missing"),
        (line(tokens=0), "input_length should be a whole number from 1 to 2147483647, not 0"),
        (line(tokens=2**31), "input_length should be a whole number from 1 to 2147483647, not 2147483648"),
        (line(tokens=5.5), "input_length should be a whole number from 1 to 2147483647, not 5.5"),
        (line(tokens=True), "input_length should be a whole number from 1 to 2147483647, not True"),
        (line(output=-1), "output_length should be a whole number from 0 to 2147483647, not -1"),
        (line(at="noon"), "timestamp should be a number, not 'noon'"),
        (line(client=7), "client should be a text, not 7"),
        (line(session=""), "session should be a text, not ''"),
        (line(priority="high"), "priority should be a whole number from -2147483648 to 2147483647, not 'high'"),
        (line(hash_ids="abc"), "hash_ids should be a list of whole numbers, not 'abc'"),
        (line(tokens=600, hash_ids=[-1, 2]), "hash_ids should be whole numbers from 0 to 2**64 - 1"),
        (line(tokens=600, hash_ids=["a", 2]), "hash_ids should be whole numbers from 0 to 2**64 - 1"),
        (
            line(tokens=100, hash_ids=[1, 2]),
            "hash_ids has 2 blocks of 512 tokens for a prompt of 100; give block_tokens",
        ),
    ],
)
def test_a_broken_json_line_names_file_line_and_reason(trace, broken, reason):
    path = trace(line(hash_ids=[1]), "", broken, line())
    with pytest.raises(BrokenLine) as caught:
        read_trace(path)
    assert str(caught.value).startswith(f"{path}, line 3: {reason}")
    assert (caught.value.path, caught.value.line) == (path, 3)


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ("2023-11-16 18:17:03,5", "should have 3 columns"),
        ("2023-11-16 18:17:03,5,6,7", "should have 3 columns"),
        ("yesterday,5,6", "TIMESTAMP should be a date and time, not 'yesterday'"),
        ("2023-11-16 18:17:03,many,6", "ContextTokens should be a whole number from 1 to 2147483647, not 'many'"),
        ("2023-11-16 18:17:03,0,6", "ContextTokens should be a whole number from 1 to 2147483647, not 0"),
        ("2023-11-16 18:17:03,5,-6", "GeneratedTokens should be a whole number from 0 to 2147483647, not -6"),
    ],
)
def test_a_broken_csv_line_names_file_line_and_reason(trace, broken, reason):
    path = trace(AZURE.strip(), "2023-11-16 18:17:03,5,6", broken)
    with pytest.raises(BrokenLine) as caught:
        read_trace(path)
    assert str(caught.value) == f"{path}, line 3: {reason}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"\n \n", "the file is empty"),
        (AZURE.encode(), "there is no request in it"),
        (b"hello world\n", "not a trace, its first line is 'hello world'; known are JSON lines with timestamp, "),
        (b"time,size\n1,2\n", "not a trace, its first line is 'time,size'; known are JSON lines with "),
        (b'{"prompt": 1, "n": 2}\n', "not a trace, its first line has prompt, n; known are JSON lines with "),
        (b"{}\n", "not a trace, its first line has no keys; known are JSON lines with "),
        (b"\xff\xfe\x00binary", "not a trace, its first line is "),
        (b"\x1f\x8bnonsense", "cannot be read: "),
        (gzip.compress(AZURE.encode() + b"2023-11-16 18:17:03,5,6\n" * 9)[:-9], "cannot be read: "),
    ],
)
def test_a_file_that_is_no_trace_says_what_it_is(tmp_path, content, message):
    path = tmp_path / "trace"
    path.write_bytes(content)
    with pytest.raises(WorkloadError) as caught:
        read_trace(path)
    assert str(caught.value).startswith(f"{path}: {message}")


def test_a_first_line_that_is_no_json_is_a_broken_line(trace):
    path = trace('{"timestamp": 1,')
    with pytest.raises(BrokenLine, match="line 1: not valid JSON"):
        read_trace(path)


def test_a_file_that_cannot_be_opened_says_why(tmp_path):
    with pytest.raises(WorkloadError, match=r"none: cannot be read: No such file"):
        read_trace(tmp_path / "none")
    with pytest.raises(WorkloadError, match="cannot be read: Is a directory"):
        read_trace(tmp_path)


def test_a_line_may_want_several_answers_a_whole_one_a_model_and_a_service_level(trace):
    path = trace(line(n=4, stream=False, model="lora", slo_ttft_s=0.5, slo_tpot_s=0.05), line(1))
    one, other = read_trace(path).requests
    assert (one.sequences, one.streams, one.served_name) == (4, False, "lora")
    assert (one.targets.ttft_s, one.targets.tpot_s) == (0.5, 0.05)
    assert (other.sequences, other.streams, other.served_name, other.targets) == (1, True, "model", None)
    assert read_trace(path).served_names == ("lora", "model")


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ({"n": 0}, "n should be a whole number from 1"),
        ({"stream": "no"}, "stream should be true or false, not 'no'"),
        ({"slo_ttft_s": 1}, "slo_tpot_s is missing"),
        ({"slo_ttft_s": -1, "slo_tpot_s": 1}, "should not be negative"),
        ({"model": 5}, "model should be a text"),
    ],
)
def test_what_a_line_wants_has_to_make_sense(trace, broken, reason):
    with pytest.raises(BrokenLine, match=reason):
        read_trace(trace(line(), line(1, **broken)))


def test_a_request_log_is_known_by_its_first_request_wherever_that_stands(trace):
    ended = {
        "time": "2026-01-01T00:00:05Z",
        "event": "request",
        "e2e_s": 1.0,
        "input_tokens": 9,
        "output_tokens": 3,
    }
    workload = read_trace(trace(*["starting"] * 50, ended))
    assert [(each.input_tokens, each.output_tokens) for each in workload.requests] == [(9, 3)]
