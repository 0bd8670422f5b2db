import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.http.request_head import request_head

NAMES = st.sampled_from([b"Accept", b"x-request-id", b"authorization", b"X-A"])
VALUES = st.binary(max_size=20).map(lambda raw: bytes(byte % 94 + 33 for byte in raw))


def test_host_and_length_are_ours_and_hop_by_hop_headers_are_dropped():
    given_headers = [
        (b"Host", b"elsewhere"),
        (b"Connection", b"upgrade"),
        (b"keep-alive", b"5"),
        (b"Transfer-Encoding", b"chunked"),
        (b"TE", b"trailers"),
        (b"trailer", b"x"),
        (b"upgrade", b"h2c"),
        (b"Proxy-Authorization", b"secret"),
        (b"proxy-connection", b"close"),
        (b"expect", b"100-continue"),
        (b"content-length", b"99"),
        (b"Authorization", b"Bearer k"),
    ]
    head = request_head(b"POST", b"/v1/x?q=1", given_headers, b"worker:8000", 3)
    assert head == (
        b"POST /v1/x?q=1 HTTP/1.1\r\nhost: worker:8000\r\nAuthorization: Bearer k\r\ncontent-length: 3\r\n\r\n"
    )


@pytest.mark.parametrize(("method", "announced"), [(b"POST", True), (b"GET", False), (b"DELETE", False)])
def test_an_empty_body_is_announced_where_a_body_is_expected(method, announced):
    assert (b"content-length: 0" in request_head(method, b"/", [], b"h", 0)) is announced


@pytest.mark.parametrize("header", [(b"x", b"a\r\nb: c"), (b"x", b"a\nb"), (b"x", b"a\r"), (b"x", b"\0")])
def test_a_value_that_would_break_its_line_is_refused_and_not_shown(header):
    with pytest.raises(ValueError, match="CR, LF or NUL: b'x'"):
        request_head(b"GET", b"/", [(b"ok", b"1"), header], b"h", 0)


@pytest.mark.parametrize("name", [b"", b"a b", b"a\r\nb", b"a:", b"\xff"])
def test_a_name_that_is_no_token_is_refused(name):
    with pytest.raises(ValueError, match="header name"):
        request_head(b"GET", b"/", [(name, b"1")], b"h", 0)


@pytest.mark.parametrize("target", [b"", b"/a b", b"/a\r\nx: y", b"/\0", b"/\xc3\xa4"])
def test_a_target_that_would_break_the_request_line_is_refused(target):
    with pytest.raises(ValueError, match="target"):
        request_head(b"GET", target, [], b"h", 0)


@pytest.mark.parametrize("method", [b"", b"GE T", b"GET\r\n", b"CONNECT"])
def test_a_method_that_is_no_token_is_refused(method):
    with pytest.raises(ValueError, match="method"):
        request_head(method, b"/", [], b"h", 0)


@given(headers=st.lists(st.tuples(NAMES, VALUES), max_size=8), body=st.binary(max_size=30))
def test_a_server_reads_what_was_given(headers, body):
    server = h11.Connection(h11.SERVER)
    server.receive_data(request_head(b"POST", b"/v1/x", headers, b"h:1", len(body)) + body)
    request = server.next_event()
    assert isinstance(request, h11.Request)
    expected = [(b"host", b"h:1"), *((n.lower(), v) for n, v in headers), (b"content-length", b"%d" % len(body))]
    assert list(request.headers) == expected
    assert (request.method, request.target) == (b"POST", b"/v1/x")
    assert b"".join(e.data for e in iter(server.next_event, h11.EndOfMessage()) if isinstance(e, h11.Data)) == body
