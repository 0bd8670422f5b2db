"""What is read of a multipart body, at a cost that grows with its length and no faster."""

import ast
import asyncio
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from router.edge.api import multipart_form
from router.edge.api.multipart_form import MAX_PARTS, MultipartForm
from router.edge.errors import BadRequest

FORM = b"multipart/form-data; boundary=xx"
SOUND = (
    b'content-disposition: form-data; name="file"; filename="a.wav"\r\ncontent-type: audio/wav',
    b"\0\xff\r\n--x" * 9999,
)
MODEL = (b'Content-Disposition: form-data; name="model"', b"whisper")


def body_of(*parts):
    return b"".join(b"--xx\r\n" + head + b"\r\n\r\n" + body + b"\r\n" for head, body in parts) + b"--xx--\r\n"


def field(name, value):
    return b'content-disposition: form-data; name="%s"' % name, value


async def parse(body, kind=FORM):
    return await MultipartForm.parse(body, kind)


@pytest.mark.parametrize("parts", [(SOUND, MODEL), (MODEL, SOUND)])
@pytest.mark.parametrize(
    "kind",
    [
        FORM,
        b"Multipart/Form-Data; boundary=xx",
        b'multipart/form-data;charset=utf-8;BOUNDARY="xx"',
    ],
)
async def test_the_model_is_read_and_put_in_place_wherever_it_stands(parts, kind):
    body = body_of(*parts)
    form = await parse(body, kind)
    assert form.text("model") == "whisper"
    other = tuple((head, b"openai/whisper-large" if head == MODEL[0] else value) for head, value in parts)
    assert form.with_model(body, "openai/whisper-large") == body_of(*other)


async def test_the_model_is_found_at_every_place_in_a_slice():
    for shift in range(-150, 10):
        body = body_of(field(b"a", b"." * (multipart_form._SLICE_BYTES + shift)), MODEL)
        form = await parse(body)
        assert form.text("model") == "whisper"
        assert form.with_model(body, "m") == body.replace(b"whisper", b"m")


async def test_a_form_without_the_fields_has_none_of_them():
    form = await parse(body_of(SOUND))
    assert form.text("model") is None
    assert not form.streams


async def test_a_file_or_a_header_that_speaks_of_a_model_is_not_the_model():
    named = b'content-disposition: form-data; name="file"; filename="model"'
    assert (await parse(body_of((named, b"sound")))).text("model") is None
    other = b'x-note: form-data; name="model"\r\n' + field(b"file", b"")[0]
    assert (await parse(body_of((other, b"sound")))).text("model") is None


@pytest.mark.parametrize("value", [b"true", b"True", b"1", b"on"])
async def test_a_form_may_ask_for_a_stream(value):
    assert (await parse(body_of(MODEL, field(b"stream", value)))).streams
    assert not (await parse(body_of(MODEL, field(b"stream", b"false")))).streams


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "before its closing boundary"),
        (b"no form", "not a valid multipart form"),
        (body_of(MODEL)[:-8], "before its closing boundary"),
        (body_of(MODEL, MODEL), "more than one `model`"),
        (body_of(field(b"model", b"x" * 513)), "`model` is longer than 512 bytes"),
        (body_of(field(b"model", b"a\r\nb")), "must not contain a line break"),
        (body_of((b'content-disposition: form-data; name="model"; filename="a"', b"x")), "not a file"),
        (body_of((b"a" * 100_000 + b": b", b"")), "not a valid multipart form"),
        (body_of((b"\r\n".join(b"a%d: b" % n for n in range(1000)), b"")), "not a valid multipart form"),
        (body_of(field(b"kv_transfer_params", b"{}")), "may not set `kv_transfer_params`"),
        (body_of(*[field(b"a", b"")] * (MAX_PARTS + 1)), f"may have {MAX_PARTS} parts"),
    ],
)
async def test_what_is_no_sound_form_is_refused_with_the_reason(body, words):
    with pytest.raises(BadRequest, match=words):
        await parse(body)


@pytest.mark.parametrize("kind", [b"multipart/form-data", FORM[:-2], b"multipart/mixed; a=b"])
async def test_a_form_needs_a_boundary(kind):
    with pytest.raises(BadRequest, match="`boundary`"):
        await parse(body_of(MODEL), kind)


ADVERSARIAL = {
    "names of fields": b'name="model"\r\n',
    "almost a boundary": b"\r\n--x",
    "a boundary that goes on": b"\r\n--xxy",
    "line breaks": b"\r\n",
    "carriage returns": b"\r",
    "hyphens": b"-",
    "nothing of the kind": b"\0",
}


@pytest.mark.parametrize("filling", ADVERSARIAL.values(), ids=ADVERSARIAL.keys())
async def test_the_work_grows_with_the_length_and_no_faster(filling):
    """Lines of Python that run while a body is read, counted for a body and for one four times as long."""

    async def work(length):
        lines = 0

        def count(_frame, event, _argument):
            nonlocal lines
            lines += event == "line"
            return count

        body = body_of((SOUND[0], filling * (length // len(filling))))
        before = sys.gettrace()
        sys.settrace(count)
        try:
            await parse(body)
        finally:
            sys.settrace(before)
        return lines

    counts = [await work(length) for length in (40_000, 160_000, 640_000)]
    for shorter, longer in pairwise(counts):
        assert longer <= 4.4 * shorter + 200


async def test_others_have_their_turn_between_slices(monkeypatch):
    """The parser gets each byte once, a slice at a time, and the loop runs in between."""
    given = []

    class Counting(multipart_form.MultipartParser):
        def write(self, data):
            given.append((len(data), turns))
            return super().write(data)

    turns = 0

    async def other():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    monkeypatch.setattr(multipart_form, "MultipartParser", Counting)
    task = asyncio.create_task(other())
    body = body_of((SOUND[0], b"\r\n--x" * 100_000), MODEL)
    await parse(body)
    task.cancel()
    assert sum(size for size, _ in given) == len(body)
    assert max(size for size, _ in given) <= 16384
    assert [turn for _, turn in given] == sorted({turn for _, turn in given})


def test_no_regular_expression_runs_where_bodies_are_read():
    """Whatever imports `re` where requests and answers pass is named here, with what it is given."""
    on_what = {
        "kv_release.py": "a worker's id of a request",
        "request_head.py": "the lines of a head, of bounded length",
        "seam_text.py": "single special tokens of at most 64 characters",
        "stream_record.py": "lists of numbers in a worker's event, which match in one way only",
    }
    rooms = ("router/edge", "workers/http")
    root = Path(multipart_form.__file__).parents[3]
    found = set()
    for path in (path for room in rooms for path in sorted((root / room).rglob("*.py"))):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [each.name for each in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            if isinstance(node, ast.ImportFrom):
                names.append(node.module or "")
            if {name.partition(".")[0] for name in names} & {"re", "regex"}:
                found.add(path.name)
    assert found == on_what.keys()
