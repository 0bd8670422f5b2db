"""Which servers stand behind one host name.

A name may have several addresses: a headless service of Kubernetes, a DNS entry with one record per machine. Each
address is then a server of its own, with its own KV cache and its own health. Connections to the name itself would
reach a random one of them each time, so probes, readings and requests would speak of different servers.

A name with one IPv4 and one IPv6 address is one server that speaks both, so only addresses of one family are ever
told apart: those of IPv4 where there are any.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import replace
from urllib.parse import urlsplit

from workers.fleet.worker import WorkerSpec
from workers.kv_events.sources import KvSource


def is_name(spec: WorkerSpec) -> bool:
    """Whether the URL holds a name that may stand for several servers."""
    host = urlsplit(spec.url).hostname or ""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return spec.each_address and spec.host_name is None
    return False


async def addresses_of(host: str, port: int | None) -> tuple[str, ...]:
    """Ask the system's resolver; in ascending order, of one family. Raises OSError."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    families: dict[int, set[str]] = {}
    for family, _, _, _, address in found:
        families.setdefault(family, set()).add(str(address[0]))
    chosen = families.get(socket.AF_INET) or families.get(socket.AF_INET6) or set()
    return tuple(sorted(chosen, key=lambda text: int(ipaddress.ip_address(text.partition("%")[0]))))


def at_addresses(spec: WorkerSpec, addresses: Sequence[str]) -> list[WorkerSpec]:
    """Return a server for each address, in the same order. They keep the name for Host header and certificate."""
    parts = urlsplit(spec.url)
    name = parts.hostname or ""
    made = []
    for address in addresses:
        host = f"[{address}]" if ":" in address else address
        port = f":{parts.port}" if parts.port else ""
        sources = spec.kv_events
        if sources is not None:
            sources = tuple(_at(source, name, host) for source in sources)
        url = f"{parts.scheme}://{host}{port}{parts.path}"
        made.append(replace(spec, url=url, host_name=name, kv_events=sources))
    return made


def _at(source: KvSource, name: str, host: str) -> KvSource:
    """The same endpoints at one address, where they name the host."""
    old, new = f"tcp://{name}:", f"tcp://{host}:"
    replay = source.replay_endpoint
    return replace(
        source,
        endpoint=source.endpoint.replace(old, new, 1),
        replay_endpoint=None if replay is None else replay.replace(old, new, 1),
    )
