import pytest

from router.edge.api.passed_body import parse_passed
from router.edge.api.rewrite import with_changes
from router.edge.errors import BadRequest


def test_model_user_and_stream_are_read():
    read = parse_passed(b'{"model":"tiny","user":"ann","stream":"yes"}')
    assert (read.model, read.user, read.stream) == ("tiny", "ann", True)
    nothing = parse_passed(b'{"user":5}')
    assert (nothing.model, nothing.user, nothing.stream) == (None, None, False)


def test_a_model_that_is_no_name_is_refused():
    with pytest.raises(BadRequest, match="`model` must be a str"):
        parse_passed(b'{"model":5}')


@pytest.mark.parametrize("body", [b"{", b"[]", b"null", b"\xff"])
def test_json_that_is_no_object_is_refused(body):
    with pytest.raises(BadRequest):
        parse_passed(body)


def test_an_alias_and_reserved_members_change_and_nothing_else_does():
    rest = b'"documents" : [1.50, "\\u00e9"], "seed":123456789012345678901234567890'
    read = parse_passed(b'{"model":"gpt","priority":3, ' + rest + b"}")
    assert with_changes(read, {**read.changes, "model": b'"tiny"'}) == b'{"model":"tiny", ' + rest + b"}"


def test_too_many_documents_are_refused_by_name():
    with pytest.raises(BadRequest, match="`documents` has 16385 documents; at most 16384 are possible") as refused:
        parse_passed(b'{"documents":[' + b"1," * 16_384 + b"1]}")
    assert refused.value.param == "documents"
