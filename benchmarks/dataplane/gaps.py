"""How long does one request stop the streams of others, and what does it leave in memory?

    python -m benchmarks.dataplane.gaps
    python -m benchmarks.dataplane.gaps --only "prompts;image" --repeat 3 --json gaps.json

The gateway runs as it ships, as a process of its own. One client reads a stream of a chunk every 2 ms; beside it,
another one sends one request of up to 32 MiB to a second model. Printed for each shape of request, and for the
memory rows (many requests that wait, many answers that are not read): what was answered, the longest gap between
two chunks of the stream, the same for a stream that goes past the gateway (what the machine itself does), the
longest step of the gateway's event loop in CPU time of its thread (`stops`), and the resident memory of the
gateway's processes before, at its peak, and afterwards, at rest.

A single request passes if the gap is at most `--gap-ms`. Where the machine alone makes half of that, the gap says
nothing of the gateway: there the longest step is judged in its place, which neighbours do not lengthen. Rows of
many requests are shown and not judged by their gap, as they are no single step. Exit status 1 if a row fails, or
more than `--left-mb` is left of any.
"""

import argparse
import asyncio
import json
import secrets
import socket
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from benchmarks.dataplane import kernel, page, stops
from benchmarks.dataplane.__main__ import backends
from benchmarks.dataplane.backend import MODEL
from benchmarks.fleet.ports import free_port
from benchmarks.fleet.report import commit, machine
from workers.launch.plan import LaunchSpec
from workers.launch.process import running

SINK = "sink"
SILENT = "silent"
"""The model of a worker that takes requests and never answers."""
ALIAS = "alias"
ADMIN_KEY = "an-admin-key-of-the-benchmark"
_ROOT = Path(__file__).parents[2]
_MIB = 1 << 20
_CHAT, _TEXT = "/v1/chat/completions", "/v1/completions"
_SPACING_MS = 2
_REST_S = 1.5
_ANSWER_WITHIN_S = 120.0
_READY_WITHIN_S = 60.0


@dataclass(frozen=True, slots=True)
class Shape:
    """One kind of request, made by `body`; `count` of them are sent at once; `unread`: no answer is read."""

    name: str
    path: str
    body: Callable[[], bytes]
    kind: str = "application/json"
    headers: str = ""
    count: int = 1
    unread: bool = False
    chunk: int = 0
    """Bytes per chunk of a chunked body; 0: it has a length."""


def _fill(before: str, each: str, after: str, size: int) -> bytes:
    """`each` as often as fits between the two, with commas."""
    room = size - len(before) - len(after)
    times = max(1, room // (len(each) + 1))
    return (before + f"{each}," * (times - 1) + each + after).encode()


def _chat(content: str) -> tuple[str, str]:
    return f'{{"model":"{SINK}","messages":[{{"role":"user","content":{content}', "}]}"


def _in_chat(each: str, size: int) -> bytes:
    before, after = _chat("[")
    return _fill(before, each, "]" + after, size)


def _text(filling: bytes, size: int, more: bytes = b"", model: str = SINK) -> bytes:
    head, tail = b'{"model":"%s",%s"prompt":"' % (model.encode(), more), b'"}'
    return head + filling * ((size - len(head) - len(tail)) // len(filling)) + tail


def _fields() -> bytes:
    return ("{" + ",".join(f'"{number}":1' for number in range(900_000)) + "}").encode()


def _image(size: int) -> bytes:
    before, after = _chat('[{"type":"image_url","image_url":{"url":"data:image/png;base64,')
    return before.encode() + b"iVBORw0K" * (size // 8) + b'"}}]' + after.encode()


def _deep(levels: int, field: str = "messages") -> bytes:
    return f'{{"model":"{SINK}","{field}":{"[" * levels}{"]" * levels}}}'.encode()


def _result(size: int) -> bytes:
    block = f'[{{"type":"tool_result","tool_use_id":"t","content":"{"word " * (size // 5)}"}}]'
    return f'{{"model":"{SINK}","max_tokens":5,"messages":[{{"role":"user","content":{block}}}]}}'.encode()


_BOUNDARY = "multipart/form-data; boundary=b"


def _part(name: str, value: bytes, more: str = "") -> bytes:
    return f'--b\r\ncontent-disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + value + b"\r\n"


def _form(*parts: bytes) -> bytes:
    return b"".join((*parts, _part("model", SINK.encode()), b"--b--\r\n"))


def _numbers(field: str, each: str, size: int) -> bytes:
    return _fill(f'{{"model":"{SINK}","{field}":[', each, "]}", size)


_LARGE = 32 * _MIB - 4096
_AUDIO = ' ; filename="a.wav"'
SHAPES = (
    Shape("32 MiB of numbers as messages", _CHAT, lambda: _numbers("messages", "0", _LARGE)),
    Shape("32 MiB of empty lists", _CHAT, lambda: _numbers("messages", "[]", _LARGE)),
    Shape("32 MiB of empty objects in a field", _CHAT, lambda: _numbers("x", "{}", _LARGE)),
    Shape("32 MiB of short strings", "/v1/embeddings", lambda: _numbers("input", '"a"', _LARGE)),
    Shape("1,024 fields and more", _CHAT, _fields),
    Shape("262,144 prompts of a token", _TEXT, lambda: _numbers("prompt", "[5]", 4 * 262_144)),
    Shape("2,048 prompts of a token", _TEXT, lambda: _numbers("prompt", "[5]", 4 * 2048)),
    Shape("1.5 million token ids", _TEXT, lambda: _numbers("prompt", "31337", 6 * 1_500_000)),
    Shape("one image of 30 MB", _CHAT, lambda: _image(30_000_000)),
    Shape("8 MB of small parts", _CHAT, lambda: _in_chat('{"type":"text","text":"x"}', 8_000_000)),
    Shape("30 MB of text", _TEXT, lambda: _text(b"some words, and ", 30_000_000)),
    Shape("30 MB of escapes", _TEXT, lambda: _text(b'\\"\\\\', 30_000_000)),
    Shape("30 MB of emoji, stream options", _TEXT, lambda: _text(
        "\N{GRINNING FACE}".encode(), 30_000_000, b'"stream":true,"stream_options":{"x":1},"priority":1,'
    )),
    Shape("30 MB for an alias", _TEXT, lambda: _text(b"word ", 30_000_000, model=ALIAS)),
    Shape("30 MB of blanks", _CHAT, lambda: b'{"model":"sink","messages":[]' + b" " * 30_000_000 + b"}"),
    Shape("30 MB that is not JSON", _CHAT, lambda: b'{"model":"sink","messages":[' + b'"a",' * 7_500_000),
    Shape("nested 300 levels", _CHAT, lambda: _deep(300)),
    Shape("nested 1,000 levels, many times", _CHAT, lambda: _numbers("x", "[" * 1000 + "]" * 1000, _LARGE)),
    Shape("nested 100,000 levels", _CHAT, lambda: _deep(100_000)),
    Shape("nested 16 million levels", "/v1/messages", lambda: _deep(16_000_000)),
    Shape("a tool's result of 30 MB", "/v1/messages", lambda: _result(30_000_000)),
    Shape("30 MB of input", "/v1/responses", lambda: _text(b"word ", 30_000_000).replace(b"prompt", b"input", 1)),
    Shape("30 MB of documents", "/v1/rerank", lambda: _numbers("documents", f'"{"word " * 400}"', 30_000_000)),
    Shape("1 million documents", "/v1/rerank", lambda: _numbers("documents", '"a"', 4_000_000)),
    Shape("30 MB of audio", "/v1/audio/transcriptions",
          lambda: _form(_part("file", b"RIFF" * 7_500_000, _AUDIO)), _BOUNDARY),
    Shape("30 MB of boundaries", "/v1/audio/transcriptions",
          lambda: _form(_part("file", b"\r\n--" * 7_500_000, _AUDIO)), _BOUNDARY),
    Shape("300,000 parts", "/v1/audio/transcriptions",
          lambda: _form(*[_part("a", b"")] * 300_000), _BOUNDARY),
    Shape("a part's header of 30 MB", "/v1/audio/transcriptions",
          lambda: _form(_part("a" * 30_000_000, b"")), _BOUNDARY),
    Shape("2 MB in chunks of a byte", _TEXT, lambda: _text(b"word ", 2_000_000), chunk=1),
    Shape("40 MB, more than the limit", _TEXT, lambda: _text(b"word ", 40_000_000)),
    Shape("gzip: 30 kB that are 32 MiB", _TEXT, lambda: _gzip(_text(b"word ", _LARGE)),
          headers="content-encoding: gzip\r\n"),
    Shape("gzip: 1 MB that is 1 GB", _TEXT, lambda: _gzip_zeros(1 << 30), headers="content-encoding: gzip\r\n"),
    Shape("admin: 32 MiB of lists", "/admin/workers", lambda: _numbers("url", "[]", _LARGE),
          headers=f"authorization: Bearer {ADMIN_KEY}\r\n"),
    Shape("admin: nested 100,000 levels", "/admin/workers", lambda: _deep(100_000),
          headers=f"authorization: Bearer {ADMIN_KEY}\r\n"),
    Shape("admin: 32 MiB without its key", "/admin/workers", lambda: _numbers("url", "[]", _LARGE)),
    Shape("20 bodies of 30 MB that wait", _TEXT,
          lambda: _text(b"word ", 30_000_000, model=SILENT), count=20),
    Shape("60 answers of 8 MB, unread", _TEXT, lambda: _text(b"word ", 500), count=60, unread=True),
)  # fmt: skip


def _gzip(body: bytes) -> bytes:
    packer = zlib.compressobj(9, wbits=31)
    return packer.compress(body) + packer.flush()


def _gzip_zeros(size: int) -> bytes:
    packer, zeros = zlib.compressobj(9, wbits=31), bytes(_MIB)
    return b"".join([packer.compress(zeros) for _ in range(size // _MIB)]) + packer.flush()


class Stream:
    """A stream that is read in a thread; `longest_ms` is the longest time between two reads since `reset`."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        body = json.dumps(
            {
                "model": MODEL,
                "messages": [{"role": "user", "content": "hello"}],
                "max_tokens": 1_000_000,
                "seed": _SPACING_MS,
                "stream": True,
            }
        ).encode()
        self._socket.sendall(_head(_CHAT, f"content-length: {len(body)}\r\n", "application/json") + body)
        self._longest = 0.0
        self.reads = 0
        self._since = time.perf_counter()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def reset(self) -> None:
        self._longest = 0.0

    def longest_ms(self) -> float:
        return 1000 * max(self._longest, time.perf_counter() - self._since if self.reads else 0.0)

    def close(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._socket.close()

    def _read(self) -> None:
        clock = time.perf_counter
        with suppress(ConnectionResetError):  # from then on its gap grows
            while self._socket.recv(1 << 16):
                now = clock()
                self._longest = max(self._longest, now - self._since)
                self._since = now
                self.reads += 1


def _head(path: str, framing: str, kind: str, more: str = "") -> bytes:
    return f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: {kind}\r\n{framing}{more}\r\n".encode()


def _pieces(shape: Shape, body: bytes) -> Iterator[bytes]:
    if not shape.chunk:
        yield _head(shape.path, f"content-length: {len(body)}\r\n", shape.kind, shape.headers)
        yield body
        return
    yield _head(shape.path, "transfer-encoding: chunked\r\n", shape.kind, shape.headers)
    frame = b"%x\r\n" % shape.chunk
    yield (
        b"".join(
            frame + body[at : at + shape.chunk] + b"\r\n"
            for at in range(0, len(body) - len(body) % shape.chunk, shape.chunk)
        )
        + b"0\r\n\r\n"
    )


def _send(shape: Shape, request: list[bytes], port: int, done: threading.Event, statuses: list[str]) -> None:
    """One request in a thread of its own: its status, or why there is none."""
    try:
        with socket.socket() as each:
            if shape.unread:
                each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
            each.settimeout(_ANSWER_WITHIN_S)
            each.connect(("127.0.0.1", port))
            with suppress(BrokenPipeError, ConnectionResetError):
                for piece in request:
                    each.sendall(piece)
            if shape.unread:
                statuses.append("not read")
                done.wait(_ANSWER_WITHIN_S)
                return
            if shape.count > 1:
                each.settimeout(0.5)
                while not done.is_set():
                    with suppress(TimeoutError):
                        statuses.append(_status(each.recv(1 << 16)))
                        return
                statuses.append("left")
                return
            statuses.append(_status(each.recv(1 << 16)))
    except OSError as error:
        statuses.append(type(error).__name__)


def _status(answer: bytes) -> str:
    return answer[9:12].decode() if answer.startswith(b"HTTP/1.") else "closed"


@dataclass(frozen=True, slots=True)
class Row:
    """What one shape has done. Memory in bytes, of all processes of the gateway."""

    name: str
    body_bytes: int
    answered: str
    gap_ms: float
    machine_gap_ms: float
    step_ms: float
    """The longest step of the gateway's loop, in CPU time."""
    requests: int
    """Sent at once."""
    before: int
    peak: int
    after: int

    @property
    def left_mb(self) -> float:
        return (self.after - self.before) / 1e6

    def stops_others(self, gap_ms: float) -> bool:
        """Whether it has stopped the other stream for longer than this: see the module for how that is judged."""
        if self.requests > 1 or self.gap_ms <= gap_ms:
            return False
        return self.machine_gap_ms <= gap_ms / 2 or self.step_ms > gap_ms


@dataclass(frozen=True, slots=True)
class Gateway:
    """The gateway under test. `direct` is the port of the worker that streams, `watch` the file of its stops."""

    port: int
    pid: int
    direct: int
    watch: Path

    async def watched(self) -> int:
        """How many seconds the watch has written; returns when one more is over."""
        before = stops.lines(self.watch)
        while stops.lines(self.watch) == before:  # noqa: ASYNC110 - a file
            await asyncio.sleep(0.05)
        return before + 1

    def resident(self) -> int:
        """Memory of the process that serves and of those beside it, in bytes."""
        return sum(map(kernel.rss, kernel.processes(self.pid)))


async def measure(shape: Shape, gateway: Gateway, repeat: int) -> Row:
    """Send it `repeat` times, one after the other."""
    request = await asyncio.to_thread(lambda: list(_pieces(shape, shape.body())))
    size = sum(map(len, request))
    loop = asyncio.get_running_loop()
    streams = [await loop.run_in_executor(None, Stream, port) for port in (gateway.port, gateway.direct)]
    statuses: list[str] = []
    try:
        while any(stream.reads < 100 for stream in streams):  # noqa: ASYNC110 - read in threads
            await asyncio.sleep(0.05)
        since = await gateway.watched()
        before = peak = gateway.resident()
        for stream in streams:
            stream.reset()
        for _ in range(repeat):
            done = threading.Event()
            threads = [
                threading.Thread(target=_send, args=(shape, request, gateway.port, done, statuses), daemon=True)
                for _ in range(shape.count)
            ]
            for thread in threads:
                thread.start()
            deadline = time.monotonic() + (8 if shape.count > 1 else _ANSWER_WITHIN_S)
            while any(thread.is_alive() for thread in threads) and time.monotonic() < deadline:
                await asyncio.sleep(0.02)
                peak = max(peak, gateway.resident())
            done.set()
            while any(thread.is_alive() for thread in threads):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        gaps = [stream.longest_ms() for stream in streams]
        await gateway.watched()
    finally:
        for stream in streams:
            await asyncio.to_thread(stream.close)
    del request
    step_ms = stops.longest(gateway.watch, since).cpu_ms
    after = gateway.resident()
    deadline = time.monotonic() + 4 * _REST_S
    while time.monotonic() < deadline and after > before:
        await asyncio.sleep(_REST_S / 3)
        after = min(after, gateway.resident())
    counted = {status: statuses.count(status) for status in statuses}
    answered = ", ".join(status if count == 1 else f"{count} x {status}" for status, count in counted.items())
    return Row(shape.name, size, answered, *gaps, step_ms, shape.count, before, peak, after)


@asynccontextmanager
async def _sink(model: str, answer_bytes: int) -> AsyncIterator[str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.dataplane.sink", model, str(answer_bytes)),
        cwd=_ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        if process.stdout is None:
            raise RuntimeError("no pipe")
        yield f"http://127.0.0.1:{int(await process.stdout.readline())}"
    finally:
        process.kill()
        await process.wait()


@asynccontextmanager
async def gateway_under_test(answer_bytes: int, checkout: str) -> AsyncIterator[Gateway]:
    """The gateway in front of a worker that streams and of one that takes everything."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (streaming,) = await stack.enter_async_context(backends(1))
        sink = await stack.enter_async_context(_sink(SINK, answer_bytes))
        silent = await stack.enter_async_context(_sink(SILENT, 0))
        port, config = free_port(), folder / "gaps.yaml"
        settings: dict[str, Any] = {
            "workers": [streaming, sink, silent],
            "models": {ALIAS: SINK},
            "admin": {"key": ADMIN_KEY},
        }
        config.write_text(yaml.safe_dump(settings))
        watch = folder / "stops.jsonl"
        fairlead = (sys.executable, "-P", "-m", "benchmarks.dataplane.stops", str(watch))
        spec = LaunchSpec(
            name=f"gaps-{secrets.token_hex(3)}",
            argv=(*fairlead, "serve", "--config", str(config), "--host", "127.0.0.1", "--port", str(port)),
            environment={"PYTHONPATH": checkout or str(_ROOT)},
            url=f"http://127.0.0.1:{port}",
            log=folder / "gaps.log",
            scratch=folder / "scratch",
            port=port,
        )
        process = await stack.enter_async_context(running(spec, grace_s=5.0))
        deadline = time.monotonic() + _READY_WITHIN_S
        while time.monotonic() < deadline:
            await asyncio.sleep(0.3)
            with suppress(OSError):
                if (await page.read(spec.url)).total("fairlead_worker_state", 'state="up"') >= 3:
                    break
        pid = next(each for each in kernel.processes(process.pid)[1:] if str(config) in kernel.arguments(each))
        yield Gateway(port, pid, int(streaming.rpartition(":")[2]), watch)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    command = argparse.ArgumentParser(
        prog="python -m benchmarks.dataplane.gaps", description=__doc__.split("\n", 1)[0]
    )
    add = command.add_argument
    add("--only", default="", help="shapes whose names have one of these in them, with ; between")
    add("--repeat", type=int, default=1, help="how often each is sent, one after the other")
    add("--gap-ms", type=float, default=50.0, help="the longest gap that passes")
    add("--left-mb", type=float, default=20.0, help="the most memory that may be left")
    add("--answer-mb", type=float, default=8.0, help="size of the second model's answers")
    add("--checkout", default="", metavar="DIR", help="measure the code of another checkout")
    add("--json", type=Path, metavar="OUT", help="write every row")
    add("--list", action="store_true", help="print the shapes and end")
    return command


def table(rows: list[Row], gap_ms: float, left_mb: float) -> Table:
    """The rows as they are printed; what fails is red."""
    made = Table(*("request", "size", "answered", "gap", "machine", "longest step", "before", "peak", "left"))
    for row in rows:
        gap = f"{row.gap_ms:.1f} ms"
        left = f"{row.left_mb:+.0f} MB"
        made.add_row(
            row.name if row.requests == 1 else f"{row.name} (not judged by its gap)",
            f"{row.body_bytes / 1e6:.1f} MB",
            row.answered,
            f"[red]{gap}[/]" if row.stops_others(gap_ms) else gap,
            f"{row.machine_gap_ms:.1f} ms",
            f"{row.step_ms:.1f} ms",
            f"{row.before / 1e6:.0f} MB",
            f"{row.peak / 1e6:.0f} MB",
            left if row.left_mb <= left_mb else f"[red]{left}[/]",
        )
    return made


async def run(options: argparse.Namespace) -> int:
    """Measure what is asked for; the exit status."""
    wanted = [word for word in options.only.split(";") if word]
    shapes = [each for each in SHAPES if not wanted or any(word in each.name for word in wanted)]
    rows: list[Row] = []
    async with gateway_under_test(round(options.answer_mb * 1e6), options.checkout) as gateway:
        # The first large body starts the process that reads such bodies: it is there from then on.
        await measure(Shape("", _TEXT, lambda: _text(b"word ", _MIB)), gateway, 1)
        for shape in shapes:
            rows.append(await measure(shape, gateway, options.repeat))
            row = rows[-1]
            gaps = f"{row.gap_ms:.1f} ms (machine {row.machine_gap_ms:.1f}), longest step {row.step_ms:.1f} ms"
            print(f"{row.name}: {row.answered}, {gaps}", file=sys.stderr, flush=True)
    Console(width=160).print(table(rows, options.gap_ms, options.left_mb))
    failed = [row.name for row in rows if row.stops_others(options.gap_ms) or row.left_mb > options.left_mb]
    if options.json is not None:
        content = {"commit": commit(), "machine": machine(), "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(content, indent=1))
    return 1 if failed else 0


def main() -> None:
    """Read the command line, measure, print."""
    options = parser().parse_args()
    if options.list:
        print("\n".join(shape.name for shape in SHAPES))
        return
    sys.exit(asyncio.run(run(options)))


if __name__ == "__main__":
    main()
