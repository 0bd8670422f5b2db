import pytest

from router.edge.errors import BadRequest
from router.edge.execution.passthrough import _fields, _model

JSON = b"application/json"
FORM = b"multipart/form-data; boundary=xx"


def form(*parts):
    return b"".join(b"--xx\r\n" + head + b"\r\n\r\n" + body + b"\r\n" for head, body in parts) + b"--xx--\r\n"


def test_the_model_of_a_json_body():
    assert _model(_fields(b'{"model":"tiny"}', JSON), b"", JSON) == "tiny"
    assert _model(_fields(b"{}", JSON), b"", JSON) is None
    assert _model(_fields(b"", b""), b"", b"") is None
    with pytest.raises(BadRequest, match="`model` must be a str"):
        _model({"model": 5}, b"", JSON)


@pytest.mark.parametrize("body", [b"{", b"[]", b"null", b"\xff"])
def test_json_that_is_no_object_is_refused(body):
    with pytest.raises(BadRequest):
        _fields(body, JSON)


def test_the_model_of_a_form():
    sound = (
        b'content-disposition: form-data; name="file"; filename="a.wav"\r\ncontent-type: audio/wav',
        b"\0\xff" * 999,
    )
    model = (b'Content-Disposition: form-data; name="model"', b"whisper")
    for parts in ((sound, model), (model, sound)):
        body = form(*parts)
        assert _fields(body, FORM) == {}
        assert _model({}, body, FORM) == "whisper"
    assert _model({}, form(sound), FORM) is None


def test_a_file_that_is_called_model_is_not_the_model():
    body = form((b'content-disposition: form-data; name="file"; filename="model"', b"sound"))
    assert _model({}, body, FORM) is None
