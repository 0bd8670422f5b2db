import pytest

from router.edge.errors import BadRequest
from router.edge.execution.passthrough import _fields, _model

JSON = b"application/json"


def test_the_model_of_a_json_body():
    assert _model(_fields(b'{"model":"tiny"}', JSON)) == "tiny"
    assert _model(_fields(b"{}", JSON)) is None
    assert _model(_fields(b"", b"")) is None
    with pytest.raises(BadRequest, match="`model` must be a str"):
        _model({"model": 5})


@pytest.mark.parametrize("body", [b"{", b"[]", b"null", b"\xff"])
def test_json_that_is_no_object_is_refused(body):
    with pytest.raises(BadRequest):
        _fields(body, JSON)


@pytest.mark.parametrize("kind", [b"application/octet-stream", b"Application/X-WWW-Form-Urlencoded; a=b"])
def test_other_kinds_of_body_are_not_read(kind):
    assert _fields(b"a=b", kind) == {}
