"""A multipart body (audio, images): the few fields that a router reads, and another model's name put in place.

`python-multipart`, which vLLM itself uses, finds the parts. It gets the body in slices, each byte once, and other
requests have their turn between two of them: whatever a body is made of, it holds the loop for one slice at most.
"""

import asyncio
import logging
from dataclasses import dataclass

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from router.edge.errors import BadRequest
from router.edge.pieces import Body, Payload, part
from router.edge.trust import NOT_FORWARDED

MAX_PARTS = 1000
"""As many as vLLM takes of each kind (Starlette's `request.form`)."""
_SLICE_BYTES = 16 << 10
_FIELD_BYTES = 512
"""The longest value of a field that is read here."""
_READ = frozenset((b"model", b"stream", b"user"))

logging.getLogger("python_multipart").setLevel(logging.ERROR)  # or each malformed body would be a line in the log


@dataclass(frozen=True, slots=True)
class Field:
    """The value of a field, and the offset of its first byte in the body."""

    value: bytes
    start: int


class MultipartForm:
    """The fields of a form that matter to routing; `parse` makes it."""

    __slots__ = (
        "_disposition",
        "_ended",
        "_fields",
        "_header",
        "_name",
        "_offset",
        "_parts",
        "_slice",
        "_start",
        "_value",
        "_value_pieces",
    )

    def __init__(self) -> None:
        self._fields: dict[bytes, Field] = {}
        self._parts = 0
        self._ended = False
        self._slice = b""
        self._offset = 0
        """Of `_slice` in the body."""
        self._header = b""
        """Name of the header that is being read."""
        self._value_pieces = b""
        """Its value, as far as it has been read."""
        self._disposition = b""
        self._name: bytes | None = None
        """Of the part that is being read, if it is one of `_READ`."""
        self._start = 0
        self._value = b""

    @classmethod
    async def parse(cls, body: Body, content_type: bytes) -> "MultipartForm":
        """Read a body. Raises BadRequest for what is no multipart form, or one too large in its parts."""
        boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
        if not boundary:
            raise BadRequest("The Content-Type of a multipart body must name its `boundary`.", param="body")
        form = cls()
        try:
            parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": form._part_begins,
                    "on_header_field": form._header_name,
                    "on_header_value": form._header_value,
                    "on_header_end": form._header_ends,
                    "on_headers_finished": form._headers_end,
                    "on_part_data": form._data,
                    "on_part_end": form._part_ends,
                    "on_end": form._ends,
                },
            )
            for offset in range(0, len(body), _SLICE_BYTES):
                if offset:
                    await asyncio.sleep(0)
                end = min(offset + _SLICE_BYTES, len(body))
                form._offset, form._slice = offset, b"".join(part(body, offset, end))
                parser.write(form._slice)
        except FormParserError as error:
            raise BadRequest(f"The request body is not a valid multipart form: {error}.", param="body") from None
        if not form._ended:
            raise BadRequest("The multipart form ends before its closing boundary.", param="body")
        return form

    def text(self, name: str) -> str | None:
        """The value of a field; None if the form has no such field."""
        found = self._fields.get(name.encode())
        return None if found is None else found.value.decode("utf-8", "replace")

    @property
    def streams(self) -> bool:
        """An answer in pieces is asked for, in one of the words that vLLM takes for "yes"."""
        found = self._fields.get(b"stream")
        return found is not None and found.value.lower() in (b"true", b"1", b"on", b"yes", b"y", b"t")

    def with_model(self, body: Body, model: str) -> Payload:
        """The body that this form was read from, with another value of `model`, which it must have."""
        field = self._fields[b"model"]
        after = part(body, field.start + len(field.value), len(body))
        buffers = (*part(body, 0, field.start), model.encode(), *after)
        return b"".join(buffers) if isinstance(body, bytes) else buffers

    # -- what the parser finds, in the order of the body

    def _part_begins(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise BadRequest(f"A multipart form may have {MAX_PARTS} parts, and this one has more.", param="body")
        self._disposition = b""
        self._name = None

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end].lower()

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value_pieces += data[start:end]

    def _header_ends(self) -> None:
        if self._header == b"content-disposition":
            self._disposition = self._value_pieces
        self._header = self._value_pieces = b""

    def _headers_end(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"name")
        if name is not None and name.decode("latin-1") in NOT_FORWARDED:
            raise BadRequest(f"A form may not set `{name.decode()}`.", param=name.decode())
        if name not in _READ:
            return
        if b"filename" in options:
            raise BadRequest(f"`{name.decode()}` must be a field of the form, not a file.", param=name.decode())
        if name in self._fields:
            raise BadRequest(f"The form has more than one `{name.decode()}`.", param=name.decode())
        self._name, self._start, self._value = name, 0, b""

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._name is None:
            return
        if not self._value:
            # What is no part of the slice begins like a boundary; its line break is refused when the part ends.
            self._start = self._offset + start if data is self._slice else 0
        self._value += data[start : min(end, start + _FIELD_BYTES + 1)]
        if len(self._value) > _FIELD_BYTES:
            name = self._name.decode()
            raise BadRequest(f"`{name}` is longer than {_FIELD_BYTES} bytes.", param=name)

    def _part_ends(self) -> None:
        if self._name is None:
            return
        if b"\r" in self._value or b"\n" in self._value:
            name = self._name.decode()
            raise BadRequest(f"`{name}` must not contain a line break.", param=name)
        self._fields[self._name] = Field(self._value, self._start)

    def _ends(self) -> None:
        self._ended = True
