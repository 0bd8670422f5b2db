"""Which paths there are, what of a body and its headers goes on, and that the documentation says so."""

from pathlib import Path

import orjson
import pytest

from router.edge import trust
from router.edge.api.parsed_request import Surface, parse
from router.edge.api.rewrite import for_worker
from router.edge.headers import to_client, to_worker
from router.edge.trust import PATHS, Use, find

DEPLOY = Path(trust.__file__).parents[2] / "deploy"


def test_the_table_in_the_documentation_is_made_from_the_list():
    assert trust.table() in (DEPLOY / "docs" / "pages" / "api.md").read_text("utf-8")


def test_exactly_the_surfaces_are_scheduled():
    scheduled = {each.path for each in PATHS if each.use is Use.SCHEDULED}
    assert scheduled == {surface.value for surface in Surface}


def test_no_path_stands_in_the_list_twice():
    assert len({each.path for each in PATHS}) == len(PATHS)


@pytest.mark.parametrize(
    "listed", [each for each in PATHS if each.use is not Use.STORED], ids=lambda each: each.path
)
def test_a_path_of_the_list_is_found_with_and_without_a_slash_at_the_end(listed):
    raw = listed.path.encode()
    assert find(listed.path, raw) is listed
    assert find(listed.path + "/", raw + b"/?a=%2F") is listed
    assert find(listed.path + "//", raw + b"//") is None
    assert find("/" + listed.path, b"/" + raw) is None
    assert find(listed.path.upper(), raw.upper()) is None
    assert find(listed.path, raw[:1] + raw[1:].replace(b"/", b"%2F") + b"%2f") is None


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("/v1/responses/resp_1", ("GET", "DELETE")),
        ("/v1/responses/resp_1/", ("GET", "DELETE")),
        ("/v1/responses/resp-1/cancel", ("POST",)),
        ("/v1/responses/resp_1/input_items", ("GET",)),
    ],
)
def test_a_stored_response_is_found_by_its_id(path, methods):
    found = find(path, path.encode())
    assert (found.path, found.methods, found.use) == (path.rstrip("/"), methods, Use.STORED)
    assert found.what in ("resp_1", "resp-1")


@pytest.mark.parametrize(
    "path",
    [
        "/v1/responses/..",
        "/v1/responses/../cancel",
        "/v1/responses//cancel",
        "/v1/responses/a/b",
        "/v1/responses/a/cancel/more",
        "/v1/responses/a%2e",
        "/v1/responses/a?b",
        "/v1/responses/a b",
        "/v1/responses/é",
        "/v1/responses/" + "a" * 257,
        "/v1/responses/a//",
    ],
)
def test_what_is_no_id_finds_nothing(path):
    assert find(path, path.encode()) is None


def test_a_body_without_reserved_fields_goes_on_as_the_same_object():
    ask = parse(Surface.CHAT, body := b'{ "model":"m", "vllm_xargs": {"a": 1} }')
    assert for_worker(ask, None) is body


@pytest.mark.parametrize("name", ["kv_transfer_params", "ec_transfer_params", "priority"])
@pytest.mark.parametrize("surface", Surface)
def test_reserved_fields_do_not_go_on(name, surface):
    body = orjson.dumps({"model": "m", "seed": 1, name: -5, "vllm_xargs": {name: [1], "mine": 2}})
    ask = parse(surface, body)
    assert for_worker(ask, None) == b'{"model":"m","seed":1,"vllm_xargs":{"mine":2}}'
    assert ask.priority == (-5 if name == "priority" else 0)


def test_a_reserved_field_that_comes_twice_does_not_go_on_either():
    ask = parse(
        Surface.CHAT, b'{"kv_transfer_params":null,"messages":[],"kv_transfer_params":{"remote_host":"x"}}'
    )
    assert for_worker(ask, None) == b'{"messages":[]}'


def test_reserved_fields_are_taken_out_of_a_body_however_deep_and_odd_the_rest_is():
    rest = b'"a":' + b"[" * 600 + b"]" * 600 + b',"seed":123456789012345678901234567890,"b" : "\\u00e9"'
    ask = parse(Surface.CHAT, b'{"priority":1,' + rest + b"}")
    assert for_worker(ask, None) == b"{" + rest + b"}"


def test_only_known_headers_go_to_a_worker():
    kept = [(b"content-type", b"application/json"), (b"traceparent", b"00-1-2-01"), (b"openai-beta", b"x")]
    names = [
        "authorization",
        "x-api-key",
        "api-key",
        "cookie",
        "x-vllm-priority",
        "x-forwarded-for",
        "x-data-parallel-rank",
        "host",
    ]
    given = [*kept, *((name.encode(), b"v") for name in names)]
    own = (b"authorization", b"Bearer of-the-worker")
    assert to_worker({"headers": given}, b"id-1", [own]) == [*kept, (b"x-request-id", b"id-1"), own]


def test_a_header_named_by_connection_is_for_this_hop_only():
    given = [(b"connection", b"close, Traceparent"), (b"traceparent", b"x"), (b"accept", b"*/*")]
    assert to_worker({"headers": given}, b"id", []) == [(b"accept", b"*/*"), (b"x-request-id", b"id")]


def test_only_known_headers_and_those_of_apis_reach_a_client():
    kept = [(b"content-type", b"application/json"), (b"retry-after", b"1"), (b"openai-processing-ms", b"5")]
    names = ["location", "content-location", "refresh", "set-cookie", "alt-svc", "server", "www-authenticate"]
    names += ["locacation", "link", "via", "x-accel-redirect", "x-sendfile", "access-control-allow-origin", "date"]
    ended = [*((name.encode(), b"v") for name in names), (b"x-served-by", b"http://10.0.0.7:8000")]
    assert to_client([*kept, (b"x-queue", b"3"), *ended], b"id", None) == [
        *kept,
        (b"x-queue", b"3"),
        (b"x-request-id", b"id"),
    ]


def test_what_a_workers_connection_header_names_ends_here():
    hop = [(b"connection", b"X-Hop, keep-alive"), (b"x-hop", b"1"), (b"keep-alive", b"timeout=5")]
    assert to_client([*hop, (b"x-end", b"2")], b"id", 0) == [
        (b"x-end", b"2"),
        (b"content-length", b"0"),
        (b"x-request-id", b"id"),
    ]
