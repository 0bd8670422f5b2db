"""The control traffic to one vLLM server: is it there, what does it serve, how is it doing?

Every answer is bounded in time and in size, and every failure becomes a `ProbeError` with a short reason for
people. Connections are not kept: a fresh one also says whether anybody still listens, and vLLM closes idle ones
after 5 s, which is just when the next reading would use them.
"""

import asyncio
import errno
import socket
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import httpx
import orjson

from workers.fleet.vllm_metrics import NotMetricsError, parse_metrics
from workers.fleet.worker import Scrape, WorkerSpec
from workers.kv_events.sources import KvSource, read_sources

MAX_ANSWER_BYTES = 8 * 1024 * 1024
_LONGEST_NAME = 1024

_UNREACHABLE = {
    errno.ECONNREFUSED: "connection refused",
    errno.EHOSTUNREACH: "no route to host",
    errno.ENETUNREACH: "network unreachable",
    errno.EHOSTDOWN: "host is down",
}
_OUR_LIMITS = {
    errno.EMFILE: "this process has no file descriptors left",
    errno.ENFILE: "this machine has no file descriptors left",
    errno.ENOBUFS: "this machine has no socket buffers left",
    errno.ENOMEM: "this machine has no memory left",
    errno.EADDRNOTAVAIL: "this machine has no local ports left",
}


class ProbeError(Exception):
    """A control request failed. `str()` is the reason: "connection refused", "no answer within 2 s"."""

    def __init__(self, why: str, *, connect: bool = False, ours: bool = False, status: int | None = None) -> None:
        super().__init__(why)
        self.connect = connect
        """Nothing listens there."""
        self.ours = ours
        """The cause lies on this side (no descriptors left): it says nothing about the worker."""
        self.status = status
        """The HTTP status, where it answered with another than 200."""


@dataclass(frozen=True, slots=True)
class Models:
    """What a server answers to."""

    base: str
    aliases: tuple[str, ...] = ()
    """Further names of the base model."""
    adapters: tuple[str, ...] = ()
    """LoRA adapters on the base model."""
    max_model_len: int | None = None
    roots: Mapping[str, str] = field(default_factory=dict)
    """What each name stands for, where that is said: a path, or an id of a model hub."""

    @property
    def bases(self) -> tuple[str, ...]:
        return (self.base, *self.aliases)


def open_client(tls: ssl.SSLContext | None = None) -> httpx.AsyncClient:
    """Return a client for one server. `tls` is worth sharing: loading the trusted roots takes 10 ms each time."""
    return httpx.AsyncClient(
        # A context without roots trusts no certificate: right for http://, and https:// comes with its own.
        verify=tls or ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
        limits=httpx.Limits(max_keepalive_connections=0),
        timeout=None,  # noqa: S113 - one deadline over the whole exchange stands in _get
        trust_env=False,  # a proxy for the outer world is none for workers
        headers={"user-agent": "fairlead", "accept-encoding": "identity"},
    )


async def check_health(client: httpx.AsyncClient, spec: WorkerSpec, timeout_s: float) -> None:
    """Return when `/health` says 200. Raises ProbeError."""
    await _get(client, spec, "/health", timeout_s)


async def fetch_models(client: httpx.AsyncClient, spec: WorkerSpec, timeout_s: float) -> Models:
    """Read `/v1/models`. Raises ProbeError."""
    return read_models(_json(await _get(client, spec, "/v1/models", timeout_s), "/v1/models"))


async def fetch_metrics(
    client: httpx.AsyncClient, spec: WorkerSpec, timeout_s: float, at: float
) -> dict[int, Scrape]:
    """Read `/metrics`: scrapes by rank, dated `at`. Raises ProbeError."""
    body = await _get(client, spec, "/metrics", timeout_s)
    try:
        return parse_metrics(body.decode(errors="replace"), at)
    except NotMetricsError as error:
        raise ProbeError(f"/metrics: {error}") from error


async def fetch_version(client: httpx.AsyncClient, spec: WorkerSpec, timeout_s: float) -> str:
    """Read `/version`. Raises ProbeError."""
    answer = _json(await _get(client, spec, "/version", timeout_s), "/version")
    if isinstance(answer, Mapping) and isinstance(version := answer.get("version"), str):
        return version
    raise ProbeError("/version names no version")


async def fetch_kv_sources(client: httpx.AsyncClient, spec: WorkerSpec, timeout_s: float) -> dict[int, KvSource]:
    """Read `/kv_event_sources`, by rank; empty where nothing is published or the server is too old to say.

    Raises ProbeError, and ValueError for an answer that cannot be used.
    """
    path = "/kv_event_sources"
    try:
        return read_sources(_json(await _get(client, spec, path, timeout_s), path), spec.url)
    except ProbeError as error:
        if error.status == httpx.codes.NOT_FOUND:
            return {}
        raise


def read_models(answer: object) -> Models:
    """Tell base, aliases and adapters apart.

    vLLM lists every served name of its one base model with the same `root` and no `parent`; a LoRA adapter names
    its base as `parent`. Entries that fit neither are another server's and are left out. Raises ProbeError.
    """
    data = answer.get("data") if isinstance(answer, Mapping) else None
    items = data if isinstance(data, list) else []
    entries = [e for e in items if isinstance(e, Mapping) and _is_name(e.get("id"))]
    bases = [e for e in entries if not e.get("parent")]
    if not bases:
        raise ProbeError("/v1/models lists no model")
    first = bases[0]
    names = dict.fromkeys(e["id"] for e in bases if e.get("root") == first.get("root"))
    length = first.get("max_model_len")
    adapters = dict.fromkeys(e["id"] for e in entries if _is_name(e.get("parent")) and e["parent"] in names)
    return Models(
        base=first["id"],
        aliases=tuple(name for name in names if name != first["id"]),
        adapters=tuple(adapters),
        max_model_len=length if type(length) is int and length > 0 else None,
        roots={
            e["id"]: e["root"] for e in entries if e["id"] in {**names, **adapters} and _is_name(e.get("root"))
        },
    )


def _is_name(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= _LONGEST_NAME


async def _get(client: httpx.AsyncClient, spec: WorkerSpec, path: str, timeout_s: float) -> bytes:
    headers = {"authorization": f"Bearer {spec.api_key}"} if spec.api_key else {}
    extensions: dict[str, str] = {}
    if spec.host_name is not None:
        port = httpx.URL(spec.url).port
        headers["host"] = spec.host_name if port is None else f"{spec.host_name}:{port}"
        extensions["sni_hostname"] = spec.host_name
    body = bytearray()
    try:
        async with (
            asyncio.timeout(timeout_s),
            client.stream("GET", spec.url + path, headers=headers, extensions=extensions) as response,
        ):
            if response.status_code != httpx.codes.OK:
                raise ProbeError(f"HTTP {response.status_code}", status=response.status_code)
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > MAX_ANSWER_BYTES:
                    raise ProbeError(f"{path} is larger than {MAX_ANSWER_BYTES >> 20} MiB")
    except TimeoutError as error:
        raise ProbeError(f"no answer within {timeout_s:g} s") from error
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        raise explain(error) from error
    return bytes(body)


def explain(error: Exception) -> ProbeError:  # noqa: PLR0911 - one return per cause
    """Find the system's reason under the layers that hide it."""
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLError):
            return ProbeError(f"TLS: {getattr(cause, 'verify_message', '') or cause.reason or cause}")
        if isinstance(cause, socket.gaierror):
            return ProbeError(f"host name does not resolve: {cause.strerror}")
        if isinstance(cause, OSError) and cause.errno in _UNREACHABLE:
            return ProbeError(_UNREACHABLE[cause.errno], connect=True)
        if isinstance(cause, OSError) and cause.errno in _OUR_LIMITS:
            return ProbeError(_OUR_LIMITS[cause.errno], ours=True)
    if isinstance(error, httpx.RemoteProtocolError):
        # Also what a listener does that was just closed while our connection waited to be accepted.
        return ProbeError(f"no HTTP answer: {error}")
    if isinstance(error, httpx.ReadError | httpx.WriteError):
        return ProbeError("connection lost")
    return ProbeError(str(error) or type(error).__name__)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Walk the chain, and into groups: a name with several addresses fails once for each."""
    while error is not None:
        yield error
        if isinstance(error, BaseExceptionGroup):
            for inner in error.exceptions:
                yield from _causes(inner)
        error = error.__cause__ or error.__context__


def _json(body: bytes, path: str) -> object:
    try:
        answer: object = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise ProbeError(f"{path} is not JSON") from error
    return answer
