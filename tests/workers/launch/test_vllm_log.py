from workers.launch.vllm_log import LogTail, causes, headline, split_prefix, tail

START = """\
W1120 13:32:39.006000 8536 torch/_library/triton.py:53] Triton not available
(APIServer pid=8536) INFO 11-20 13:32:47 [model.py:2152] Using max model len 4096
(APIServer pid=8536) WARNING 11-20 13:32:47 [cpu.py:224] Something to know.
/venv/lib/dispatcher.py:138: FutureWarning: old
(EngineCore pid=8657) INFO 11-20 13:32:54 [api_utils.py:347]  ▄▄ ▄█ █
""".splitlines()

FAILURE = """\
(EngineCore pid=1) ERROR 11-20 13:33:27 [core.py:1510] Traceback (most recent call last):
(EngineCore pid=1) ERROR 11-20 13:33:27 [core.py:1510]     raise ValueError(
(EngineCore pid=1) ERROR 11-20 13:33:27 [core.py:1510] ValueError: To serve at least one request
ValueError: To serve at least one request
(APIServer pid=2) RuntimeError: Engine core initialization failed. See root cause above.
""".splitlines()


def test_the_headline_is_vllm_s_newest_information_not_its_noise():
    assert headline(START) == "Using max model len 4096"


def test_a_progress_bar_is_a_headline():
    bar = "Loading safetensors checkpoint shards:  50% Completed | 1/2 [00:01<00:01]"
    assert headline([*START, bar]) == bar


def test_a_program_that_logs_otherwise_shows_its_newest_line():
    assert headline(["\x1b[32mstep one\x1b[0m", "step two", "", "-----"]) == "step two"
    assert headline([]) is None


def test_the_prefix_of_a_line_is_split_off():
    assert split_prefix(START[1]) == ("INFO", "Using max model len 4096")
    assert split_prefix("plain") == (None, "plain")


def test_the_cause_of_a_failure_is_the_first_error_not_its_consequence():
    assert causes(FAILURE) == ["ValueError: To serve at least one request"]


def test_a_consequence_alone_is_still_better_than_nothing():
    assert causes(FAILURE[-1:]) == ["RuntimeError: Engine core initialization failed. See root cause above."]


def test_errors_of_any_module_are_recognised_and_prose_is_not():
    assert causes(["huggingface_hub.errors.HFValidationError: bad id", "Note: nothing", "raise ValueError("]) == [
        "huggingface_hub.errors.HFValidationError: bad id"
    ]


def test_the_tail_has_no_empty_lines_and_is_short():
    assert tail(["a", "", "b\x1b[0m", "  "]) == ["a", "b"]
    assert len(tail(["x"] * 100)) == 15


def test_only_lines_that_are_complete_are_read_and_only_those_of_this_process(tmp_path):
    path = tmp_path / "log"
    path.write_text("of an earlier process\n")
    log = LogTail(path)
    with path.open("a") as file:
        file.write("one\ntw")
    assert log.read_new() == ["one"]
    with path.open("a") as file:
        file.write("o\n10%\r20%\r")
    assert log.read_new() == ["two", "10%", "20%"]
    assert log.last_lines() == ["one", "two", "10%", "20%", ""]


def test_a_log_that_does_not_exist_yet_is_read_from_its_beginning(tmp_path):
    log = LogTail(tmp_path / "log")
    (tmp_path / "log").write_text("first\n")
    assert log.read_new() == ["first"]
