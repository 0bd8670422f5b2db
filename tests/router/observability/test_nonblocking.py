"""What takes no waiting is written; the rest is left, and the stream stays as it was for others."""

import io
import os
import pty
import socket

import pytest

from router.observability.log_writer import Lines
from router.observability.nonblocking import nonblocking_writer


def test_a_pipe_takes_what_fits_and_stays_blocking_for_others():
    out, into = os.pipe()
    with io.FileIO(into, "wb") as stream, io.FileIO(out, "rb") as reader:
        writer = nonblocking_writer(stream)
        taken = 0
        while count := writer.write(b"x" * 4096):
            taken += count
        assert taken >= 4096
        assert os.get_blocking(into)
        assert len(reader.read(taken)) == taken
        assert writer.write(b"again") == 5
        writer.close()


def test_a_socket_takes_what_fits():
    ours, theirs = socket.socketpair()
    with ours, theirs, io.FileIO(ours.fileno(), "wb", closefd=False) as stream:
        writer = nonblocking_writer(stream)
        while writer.write(b"x" * 65536):
            pass
        assert ours.getblocking()
        writer.close()


def test_a_terminal_takes_lines():
    leader, follower = pty.openpty()
    with io.FileIO(follower, "wb") as stream:
        writer = nonblocking_writer(stream)
        assert writer.write(b"a line\n") == 7
        assert os.read(leader, 100).startswith(b"a line")
        writer.close()
    os.close(leader)


def test_a_pipe_without_a_reader_is_an_error():
    out, into = os.pipe()
    with io.FileIO(into, "wb") as stream:
        writer = nonblocking_writer(stream)
        os.close(out)
        with pytest.raises(BrokenPipeError):
            writer.write(b"x")
        writer.close()


def test_what_has_no_descriptor_has_no_writer():
    assert nonblocking_writer(io.BytesIO()) is None


def test_a_reader_that_keeps_up_needs_no_thread(tmp_path):
    path = tmp_path / "log"
    with io.FileIO(path, "wb") as stream:
        lines = Lines(stream)
        for number in range(100):
            lines.write(b"%d\n" % number)
        assert path.read_bytes() == b"".join(b"%d\n" % number for number in range(100))
        assert lines._thread is None
        assert lines.flush()
        lines.close()
