import io
import os
import threading

import pytest
from prometheus_client import CollectorRegistry

from router.observability.log_writer import MAX_HELD_BYTES, Lines, LogSeries
from router.observability.page import Page


class Pipe:
    """A pipe with a reader that takes nothing until it is asked to."""

    def __init__(self):
        self._out, into = os.pipe()
        self.stream = io.FileIO(into, "wb")

    def read_all(self):
        """A thread that reads to the end, and what it has read."""
        got = []

        def read():
            while part := os.read(self._out, 65536):
                got.append(part)

        thread = threading.Thread(target=read)
        thread.start()
        return thread, got

    def close_reader(self):
        os.close(self._out)


def test_lines_leave_in_order_from_a_thread_of_their_own():
    writers = set()

    class Stream(io.BytesIO):
        def write(self, data):
            writers.add(threading.get_ident())
            return super().write(data)

    stream = Stream()
    lines = Lines(stream)
    text = [b"%d\n" % number for number in range(1000)]
    for line in text:
        lines.write(line)
    assert lines.flush()
    assert stream.getvalue() == b"".join(text)
    assert len(writers) == 1
    assert threading.get_ident() not in writers
    lines.close()


def test_a_reader_that_takes_nothing_costs_lines_and_nothing_else():
    pipe = Pipe()
    lines = Lines(pipe.stream)
    line = b"x" * 9_999 + b"\n"
    sent = 2 * MAX_HELD_BYTES // len(line)
    for _ in range(sent):
        lines.write(line)
    assert not lines.flush(0.01)
    assert sent // 3 < lines.dropped < sent
    reader, got = pipe.read_all()
    assert lines.flush(20)
    lines.write(b"read again\n")
    lines.close(20)
    pipe.stream.close()
    reader.join()
    assert b"".join(got) == line * (sent - lines.dropped) + b"read again\n"
    pipe.close_reader()


def test_a_pipe_that_somebody_made_non_blocking_loses_nothing():
    pipe = Pipe()
    os.set_blocking(pipe.stream.fileno(), False)
    lines = Lines(pipe.stream)
    text = b"y" * 1_000_000 + b"\n"
    lines.write(text)
    assert not lines.flush(0.01)
    reader, got = pipe.read_all()
    lines.close(20)
    pipe.stream.close()
    reader.join()
    assert b"".join(got) == text
    assert lines.dropped == 0
    pipe.close_reader()


@pytest.mark.parametrize("error", [BrokenPipeError(), ValueError("closed")])
def test_a_stream_that_is_gone_costs_lines_and_nothing_else(error):
    class Gone(io.BytesIO):
        def write(self, _):
            raise error

    lines = Lines(Gone())
    for _ in range(3):
        lines.write(b"a\n")
    assert lines.flush()
    assert lines.dropped == 3
    page = Page(CollectorRegistry())
    page.add(LogSeries(lines))
    assert b"fairlead_log_lines_dropped_total 3.0" in page.now()
    lines.close()


def test_a_line_after_the_end_is_written_too():
    stream = io.BytesIO()
    lines = Lines(stream)
    for line in (b"first\n", b"second\n"):
        lines.write(line)
        lines.close()
    assert stream.getvalue() == b"first\nsecond\n"
