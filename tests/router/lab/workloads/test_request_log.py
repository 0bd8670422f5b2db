"""The gateway's own log as a workload."""

import io
import json
from array import array
from random import Random

import pytest

from router.edge.api.fingerprint import fingerprint
from router.edge.api.parsed_request import Surface, parse
from router.lab.driver import replay
from router.lab.report import summarize
from router.lab.setup import make_setup
from router.lab.workload import WorkloadError
from router.lab.workloads.trace_lines import BrokenLine
from router.lab.workloads.traces import read_trace
from router.observability.log_writer import Lines
from router.observability.request_log import RequestLog
from workers.simulator.engine import Engine
from workers.simulator.profiles import PROFILES
from workers.simulator.sequences import EngineConfig, EngineRequest

STARTED = {"time": "2026-01-01T00:00:00Z", "level": "info", "event": "listening", "logger": "router.up"}


def written(path, *ended, first=STARTED):
    """A log as the gateway writes it: (moment of the end, record) for each request."""
    stream, now = io.BytesIO(), [0.0]
    log = RequestLog(Lines(stream), text=False, clock=lambda: now[0])
    for at, record in ended:
        now[0] = at
        log.write(record)
    log.lines.close()
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
    assert not any("backwards" in warning for warning in workload.warnings), "a log is in the order of the ends"
    assert not set(units(workload.requests[0])) & set(units(workload.requests[2]))


def ask(*contents):
    roles = ("system", "user", "assistant")
    messages = [{"role": roles[0 if n == 0 else 2 - n % 2], "content": text} for n, text in enumerate(contents)]
    return parse(Surface.CHAT, json.dumps({"messages": messages}).encode())


def logged(asked, at, e2e_s=1.0, line="base", **rest):
    """(moment of the end, record) of a request as the gateway logs it."""
    return at, record(e2e_s=e2e_s, prefix=fingerprint(asked, line), prompt_bytes=len(asked.prompt), **rest)


def test_logged_prefixes_keep_what_prompts_share(tmp_path):
    system = "You are a helpful assistant. " * 30
    path = written(
        tmp_path / "log",
        logged(ask(system, "What is the capital of France?"), 10.0, tokens=220),
        logged(ask(system, "And what is the capital of Spain, if I may ask?"), 11.0, tokens=230),
        logged(ask("Something else altogether", "and more of it"), 12.0, tokens=100),
    )
    one, other, alone = map(units, read_trace(path).requests)
    assert (len(one), len(other), len(alone)) == (220 // 16, 230 // 16, 100 // 16)
    same = sum(a == b for a, b in zip(one, other, strict=False))
    assert 12 <= same < len(one)
    assert not set(alone) & set(one)


def test_the_next_turn_repeats_the_answer_and_comes_as_long_after_it_as_it_did(tmp_path):
    first = ask("system", "question " * 100)
    second = ask("system", "question " * 100, "answer " * 80, "and then?")
    path = written(
        tmp_path / "log", logged(first, 10.0, e2e_s=2.0, tokens=160, output=96), logged(second, 17.0, tokens=320)
    )
    one, other = read_trace(path).requests
    assert other.after == (0, pytest.approx(6.0))
    assert one.after is None
    assert other.key.startswith(one.key + one.reply_key)
    assert len(one.reply_key) == 8 * (96 // 16)


def test_a_prompt_that_was_sent_before_the_answer_came_waits_for_nothing(tmp_path):
    first, second = ask("s", "question"), ask("s", "question", "guess", "and then?")
    path = written(tmp_path / "log", logged(second, 9.0, e2e_s=2.0), logged(first, 10.0, e2e_s=5.0))
    assert [each.after for each in read_trace(path).requests] == [None, None]


def test_answers_that_were_not_streamed_are_not_streamed_in_the_replay(tmp_path):
    path = written(tmp_path / "log", (1.0, record(stream=False)), (2.0, record(stream=True)), (3.0, record()))
    assert [each.streams for each in read_trace(path).requests] == [False, True, True]


# -- a log with prompts, answered by a real engine


WORDS = [f"w{number:x}" for number in range(3000)]


class Conversations:
    """Chats with a few shared system prompts, over one engine that counts its hits; the log says what it did."""

    def __init__(self, seed, kv_tokens):
        self.chance = Random(seed)
        self.systems = [self.words(length) for length in (40, 300, 900)]
        limits = {"kv_blocks": kv_tokens // 16, "max_model_len": kv_tokens // 2}
        self.engine = Engine(EngineConfig(**limits), PROFILES["instant"])
        self.lines, self.now, self.cached, self.total = [], 0.0, 0, 0

    def words(self, most):
        return [self.chance.randrange(len(WORDS)) for _ in range(self.chance.randint(1, most))]

    def send(self, history, number):
        """One turn: appends the answer to the history."""
        answer = self.words(120)
        ids = [token for text in history for token in (1, 2, 3, *text)]  # three tokens of the chat template each
        reply = EngineRequest(
            str(number), ids, len(answer), len(answer), reply=lambda a, b: [1, 2, 3, *answer][a:b]
        )
        sequence = self.engine.add(reply, self.now)
        started = self.now
        while (at := self.engine.next_event()) is not None:
            self.engine.advance(at)
            self.now = at
        prompt = ask(*(" ".join(WORDS[token] for token in text) for text in history))
        self.lines.append(
            logged(
                prompt,
                self.now,
                e2e_s=self.now - started,
                tokens=len(ids),
                output=len(answer),
                cached_tokens=sequence.cached,
            )
        )
        self.cached, self.total = self.cached + sequence.cached, self.total + len(ids)
        history.append(answer)

    def run(self, turns):
        chats = []
        for number in range(turns):
            if not chats or self.chance.random() < 0.3:
                chats.append([self.chance.choice(self.systems)])
            history = self.chance.choice(chats[-6:])
            history.append(self.words(60))
            self.send(history, number)
            self.now += 0.1


@pytest.mark.parametrize(("seed", "kv_tokens"), [(0, 400_000), (1, 16_000), (2, 400_000)])
def test_the_replay_finds_the_hits_that_the_log_reports_within_two_points(tmp_path, seed, kv_tokens):
    chats = Conversations(seed, kv_tokens)
    chats.run(150)
    traffic = read_trace(written(tmp_path / "log", *chats.lines))
    setup = make_setup(workers=1, profile="instant", settings={"engine.kv_tokens": kv_tokens})
    report = summarize(replay(traffic, setup), setup)
    assert chats.cached / chats.total > 0.5
    assert report["prefix_hit_ratio"] == pytest.approx(chats.cached / chats.total, abs=0.02)
    (note,) = [warning for warning in traffic.warnings if "cached" in warning]
    assert f"found {chats.cached / chats.total:.1%} of the prompt tokens cached" in note


# -- lines that are not replayed


def test_lines_of_others_are_skipped_and_counted(tmp_path):
    path = written(tmp_path / "log", (1.0, record()), (2.0, record(tokens=0)), (3.0, record()))
    lines = path.read_bytes().splitlines()
    ready = b"fairlead is ready on http://127.0.0.1:8080"
    path.write_bytes(b"\n".join([ready, b"[]", *lines, b"Traceback (most recent call last):", lines[-1][:40]]))
    workload = read_trace(path)
    assert len(workload.requests) == 2
    assert workload.warnings[:2] == (
        f"{path}: 1 of 3 requests ended without a count of their tokens and are left out",
        f"{path}: 5 lines are no requests and are skipped (1 other events, 4 of another format)",
    )


def test_requests_without_a_count_are_left_out_with_a_warning(tmp_path):
    rejected = {"outcome": "rejected", "client": "a", "e2e_s": 0.1}
    path = written(tmp_path / "log", (1.0, rejected), (2.0, record()), (3.0, rejected | {"input_tokens": 5}))
    workload = read_trace(path)
    assert len(workload.requests) == 1
    assert f"{path}: 2 of 3 requests ended without a count of their tokens and are left out" in workload.warnings


def test_a_log_without_requests_is_refused(tmp_path):
    with pytest.raises(WorkloadError, match=r"there is no request in it; .*1 lines are no requests"):
        read_trace(written(tmp_path / "log"))
    with pytest.raises(WorkloadError, match=r"there is no request in it; .*1 of 1 requests ended without a count"):
        read_trace(written(tmp_path / "log", (1.0, {"e2e_s": 1.0})))


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (record(e2e_s="long"), "e2e_s should be a number, not 'long'"),
        (record(tokens=-1), "input_tokens should be a whole number from 1 to 2147483647, not -1"),
        (record(prefix="AAAA"), "prefix should be base64 of records of 8 bytes, not 'AAAA'"),
        (record(prefix="(!)"), "prefix should be base64 of records of 8 bytes, not '(!)'"),
        (record(prefix=[1]), "prefix should be a text, not [1]"),
        (record(prefix="AAAAAAAAAAg="), "prompt_bytes is missing"),
        (record(prefix="AAAAAAAAAAg=", prompt_bytes=7), "prompt_bytes is 7, but the pieces of its prefix have 8"),
        ({**record(), "time": "noon"}, "time should be a date and time, not 'noon'"),
    ],
)
def test_a_broken_line_names_file_line_and_reason(tmp_path, broken, reason):
    path = written(tmp_path / "log", (1.0, record()), (2.0, broken))
    with pytest.raises(BrokenLine) as caught:
        read_trace(path)
    assert str(caught.value) == f"{path}, line 3: {reason}"


def test_the_log_for_people_is_no_trace(tmp_path):
    stream = io.BytesIO()
    lines = Lines(stream)
    RequestLog(lines, text=True).write(record())
    lines.close()
    path = tmp_path / "log"
    path.write_bytes(stream.getvalue())
    with pytest.raises(WorkloadError, match="the gateway's request log as JSON lines"):
        read_trace(path)
