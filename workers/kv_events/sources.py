"""Where an engine publishes its KV events: as an operator says it, or as the server's /kv_event_sources does."""

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

_ANYWHERE = frozenset({"*", "", "0.0.0.0", "::", "[::]"})
"""Wildcard hosts: a server can bind them, a client cannot connect to them."""


@dataclass(frozen=True, slots=True)
class KvSource:
    """The endpoints of one engine, to be connected to. Raises ValueError where that is not possible."""

    endpoint: str
    """PUB socket, `tcp://10.0.0.7:5557` or `ipc:///run/kv`."""
    replay_endpoint: str | None = None
    """ROUTER socket that repeats batches; None: what was missed once cannot be asked for."""
    topic: str = ""
    """Only messages whose topic begins like this."""

    def __post_init__(self) -> None:
        for endpoint in (self.endpoint, self.replay_endpoint):
            if endpoint is not None:
                _check(endpoint)


def read_sources(answer: object, url: str) -> dict[int, KvSource]:
    """Read the answer of /kv_event_sources, by rank; empty where nothing is published over ZMQ.

    A host that stands for every address of the server becomes that of its `url`. Raises ValueError.
    """
    if not isinstance(answer, Mapping):
        raise ValueError("the answer is no JSON object")  # noqa: TRY004  # a wrong answer, not a wrong call
    found: dict[int, KvSource] = {}
    for rank, told in answer.items():
        if not str(rank).isdecimal() or not isinstance(told, Mapping):
            raise ValueError(f"{rank!r} is no rank with its settings")
        if told.get("enable_kv_cache_events") is False or told.get("publisher", "zmq") != "zmq":
            continue
        endpoint, replay, topic = told.get("endpoint"), told.get("replay_endpoint"), told.get("topic")
        if not isinstance(endpoint, str):
            raise ValueError(f"rank {rank} names no endpoint")  # noqa: TRY004
        found[int(rank)] = KvSource(
            reachable(endpoint, url),
            reachable(replay, url) if isinstance(replay, str) else None,
            topic if isinstance(topic, str) else "",
        )
    return found


def reachable(endpoint: str, url: str) -> str:
    """Put the host of `url` where the endpoint names all hosts. Another endpoint stays as it is."""
    host, port = _tcp(endpoint)
    if host not in _ANYWHERE:
        return endpoint
    name = urlsplit(url).hostname or "127.0.0.1"
    return f"tcp://[{name}]:{port}" if ":" in name else f"tcp://{name}:{port}"


def by_rank(sources: Mapping[int, KvSource], ranks: int) -> Mapping[int, KvSource]:
    """Match sources to the engines 0..ranks-1 that an operator told of.

    A server that is one replica of a larger group names its only engine by its place in that group. Raises
    ValueError where several caches would have to pass for one.
    """
    if ranks > 1:
        return {rank: source for rank, source in sources.items() if rank < ranks}
    if len(sources) > 1:
        raise ValueError(f"it has {len(sources)} engines with a cache each, and data_parallel is 1")
    return dict(enumerate(sources.values()))


def _check(endpoint: str) -> None:
    if endpoint.startswith("ipc://") and len(endpoint) > len("ipc://"):
        return
    host, port = _tcp(endpoint)
    if host is None:
        raise ValueError(f"{endpoint!r} is neither tcp://HOST:PORT nor ipc://PATH")
    if host in _ANYWHERE:
        raise ValueError(f"{endpoint!r} names no host to connect to")
    if not (port.isdecimal() and 0 < int(port) < 1 << 16):
        raise ValueError(f"{endpoint!r} names no port to connect to")


def _tcp(endpoint: str) -> tuple[str | None, str]:
    """Host and port, with None for the host where it is no TCP endpoint."""
    if not endpoint.startswith("tcp://"):
        return None, ""
    host, colon, port = endpoint.removeprefix("tcp://").rpartition(":")
    return (host, port) if colon else (None, "")
