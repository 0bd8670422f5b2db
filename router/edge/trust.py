"""What a client may have done by a worker, and what it may hear of one: paths, fields, headers.

Paths are an allow-list. What is looked up is the path as decoded once; nothing is tidied up, so that
`/v1/../pause`, `//` or an encoded slash is no path of the list, and a worker is sent the path as the list has it,
never as a client wrote it. A path that makes a model compute is scheduled, and counted, or refused; where the body
does not say what that costs (audio, documents to be scored), it is estimated from its length. Only what is about
tokens themselves, which takes no model, is passed through.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any


class Use(Enum):
    """What becomes of a request to a path. Values are words of the table in the documentation."""

    SCHEDULED = "scheduled"
    ESTIMATED = "scheduled, tokens estimated"
    PASSED_THROUGH = "passed through"
    STORED = "passed to the worker that holds the response"
    OWN = "answered here"
    REFUSED = "404"


@dataclass(frozen=True, slots=True)
class Path:
    """One path. `{id}` stands for the id of a stored response."""

    path: str
    methods: tuple[str, ...]
    use: Use
    what: str
    """For people: what it does, or why it is refused and what to call instead."""


_POST = ("POST",)
_PAST_THE_QUEUE = "would generate past queue and limits; use `/v1/chat/completions` or `/v1/completions`"
_ONE_WORKER = "would change one worker; call each worker itself"

PATHS = (
    Path("/v1/chat/completions", _POST, Use.SCHEDULED, "chat completion"),
    Path("/v1/completions", _POST, Use.SCHEDULED, "text completion"),
    Path("/v1/responses", _POST, Use.SCHEDULED, "response (OpenAI's Responses API)"),
    Path("/v1/messages", _POST, Use.SCHEDULED, "message (Anthropic's Messages API)"),
    Path("/v1/embeddings", _POST, Use.SCHEDULED, "embeddings"),
    Path("/v1/responses/{id}", ("GET", "DELETE"), Use.STORED, "read or delete a stored response"),
    Path("/v1/responses/{id}/cancel", _POST, Use.STORED, "cancel a response in the background"),
    Path("/v1/responses/{id}/input_items", ("GET",), Use.STORED, "the input of a stored response"),
    Path("/v1/messages/count_tokens", _POST, Use.PASSED_THROUGH, "tokens of a message"),
    Path("/tokenize", _POST, Use.PASSED_THROUGH, "tokens of a text or chat"),
    Path("/detokenize", _POST, Use.PASSED_THROUGH, "text of tokens"),
    Path("/v1/audio/transcriptions", _POST, Use.ESTIMATED, "text of speech"),
    Path("/v1/audio/translations", _POST, Use.ESTIMATED, "English text of speech"),
    Path("/v1/audio/speech", _POST, Use.ESTIMATED, "speech of a text"),
    *(
        Path(path, _POST, Use.ESTIMATED, what)
        for what, paths in (
            ("documents in order of relevance", ("/rerank", "/v1/rerank", "/v2/rerank")),
            ("scores of pairs of texts", ("/score", "/v1/score")),
            ("embeddings (Cohere's API)", ("/v2/embed",)),
            ("embeddings of any kind", ("/pooling",)),
            ("classes of texts", ("/classify",)),
            ("probabilities of given tokens", ("/generative_scoring",)),
        )
        for path in paths
    ),
    Path("/v1/chat/completions/batch", _POST, Use.REFUSED, _PAST_THE_QUEUE),
    Path("/invocations", _POST, Use.REFUSED, _PAST_THE_QUEUE),
    Path("/inference/v1/generate", _POST, Use.REFUSED, _PAST_THE_QUEUE),
    Path("/cohere/v2/chat", _POST, Use.REFUSED, _PAST_THE_QUEUE),
    Path("/abort_requests", _POST, Use.REFUSED, "would end requests of others; close the connection instead"),
    Path("/inference/v1/abort_requests", _POST, Use.REFUSED, "would end requests of others; close the connection"),
    Path("/v1/load_lora_adapter", _POST, Use.REFUSED, _ONE_WORKER),
    Path("/v1/unload_lora_adapter", _POST, Use.REFUSED, _ONE_WORKER),
    Path("/pause", _POST, Use.REFUSED, _ONE_WORKER),
    Path("/sleep", _POST, Use.REFUSED, _ONE_WORKER),
    *(Path(path, ("GET",), Use.OWN, "the process is alive") for path in ("/health", "/healthz", "/livez")),
    Path("/ping", ("GET", "POST"), Use.OWN, "the same, as SageMaker asks for it"),
    Path("/readyz", ("GET",), Use.OWN, "200 while any model can be served: for load balancers and probes"),
    Path("/ready", ("GET",), Use.OWN, "200 while every known model can be served, else what is missing"),
    Path("/v1/usage", ("GET",), Use.OWN, "what the key that is sent has used and may use, and no other"),
    Path("/load", ("GET",), Use.OWN, "`server_load`: requests that are open here"),
    Path(
        "/tokenizer_info",
        ("GET",),
        Use.REFUSED,
        "shows one worker's files; use `/tokenize`, or call the worker itself",
    ),
)
"""All that is more than a 404 without a word; the gateway's own pages stand where they are served."""

_STORED = "/v1/responses/"
_PARTS_OF_STORED = {"": ("GET", "DELETE"), "cancel": _POST, "input_items": ("GET",)}
_BY_PATH = {each.path: each for each in PATHS if each.use is not Use.STORED}
_ID_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")
_LONGEST_ID = 256


def find(path: str, raw: bytes) -> Path | None:
    """What the list says of a path; None: nothing.

    `path` is decoded, `raw` as the client wrote it (a query may follow). One slash at the end makes no difference.
    For a stored response the path has its id in place.
    """
    if b"%" in raw and b"%2f" in raw.partition(b"?")[0].lower():
        return None
    found = _BY_PATH.get(path)
    if found is None and path.endswith("/"):
        path = path[:-1]
        found = _BY_PATH.get(path)
    if found is None and path.startswith(_STORED):
        response, slash, part = path[len(_STORED) :].partition("/")
        methods = _PARTS_OF_STORED.get(part)
        if methods is not None and bool(slash) == bool(part) and is_stored_id(response):
            return Path(path, methods, Use.STORED, response)
    return found


def is_stored_id(text: str) -> bool:
    """Whether this may stand in a path as the id of a stored response, a client's path or the gateway's own."""
    return 0 < len(text) <= _LONGEST_ID and _ID_CHARACTERS.issuperset(text)


# -- fields of a body

NOT_FORWARDED = frozenset(("kv_transfer_params", "ec_transfer_params", "priority"))
"""The gateway says where KV and encoder outputs are: a client could make a worker fetch from any address, or what
belongs to others. `priority` is read by the gateway's own order; in an engine it would displace others.
"""
_NESTED = "vllm_xargs"
"""vLLM merges it with these fields of its own."""


def reserved(fields: Mapping[str, Any]) -> dict[str, tuple[str, ...] | None]:
    """What of a JSON body is not forwarded: names of its members, and, of one that goes on without some, those."""
    nested = fields.get(_NESTED)
    inner = NOT_FORWARDED.intersection(nested) if isinstance(nested, dict) else None
    if not inner and NOT_FORWARDED.isdisjoint(fields):
        return {}
    found: dict[str, tuple[str, ...] | None] = {name: None for name in fields if name in NOT_FORWARDED}
    if inner:
        found[_NESTED] = tuple(inner)
    return found


_REFERENCE = "item_reference"


def stored_references(fields: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    """What a body for `/v1/responses` names of what workers store: field and id.

    Control passes on only those that the same key has stored. vLLM knows `previous_response_id`; conversations and
    references to single items are OpenAI's, and would be looked up in the same way.
    """
    found = [("previous_response_id", fields.get("previous_response_id"))]
    conversation = fields.get("conversation")
    found.append(("conversation", conversation.get("id") if isinstance(conversation, dict) else conversation))
    items = fields.get("input")
    if isinstance(items, list):
        found += [
            ("input", item.get("id"))
            for item in items
            if isinstance(item, dict) and item.get("type") == _REFERENCE
        ]
    return tuple((field, value) for field, value in found if isinstance(value, str) and value)


# -- headers

TO_WORKERS = frozenset(
    (
        b"accept",
        b"accept-language",
        b"anthropic-beta",
        b"anthropic-version",
        b"baggage",
        b"content-type",
        b"openai-beta",
        b"traceparent",
        b"tracestate",
        b"user-agent",
    )
)
"""The headers of a request that go on. The gateway adds `x-request-id` and the worker's own (key, rank)."""
TO_CLIENTS = frozenset(
    (
        b"allow",
        b"cache-control",
        b"content-disposition",
        b"content-encoding",
        b"content-language",
        b"content-type",
        b"etag",
        b"expires",
        b"last-modified",
        b"pragma",
        b"retry-after",
        b"vary",
        b"warning",
    )
)
"""The headers of a worker's answer that go on, beside those that APIs add under names of their own."""
API_HEADERS = (b"anthropic-", b"openai-", b"x-")
"""How such names begin."""
NOT_TO_CLIENTS = frozenset((b"x-accel-redirect", b"x-request-id", b"x-sendfile"))
"""Of these not: the gateway names the request; with the others a proxy in front would send files of its own."""
_ADDRESS = b"://"


def goes_to_client(name: bytes, value: bytes) -> bool:
    """Whether a header of a worker's answer goes on: none that frames it, sets a cookie, or names an address."""
    if name in TO_CLIENTS:
        return True
    return name.startswith(API_HEADERS) and name not in NOT_TO_CLIENTS and _ADDRESS not in value


def table(paths: Iterable[Path] = PATHS) -> str:
    """The paths as a Markdown table, for the documentation."""
    rows = (f"| {' '.join(each.methods)} | `{each.path}` | {each.use.value} | {each.what} |" for each in paths)
    return "\n".join(("| method | path | | |", "|---|---|---|---|", *rows))


def names(of: Iterable[str | bytes]) -> str:
    """Fields or headers as a list for the documentation, in order."""
    return ", ".join(f"`{each}`" for each in sorted(one if isinstance(one, str) else one.decode() for one in of))
