"""Proxies in front that are believed when they say whose request they pass on.

`X-Forwarded-For` is a list to which each proxy appends the address that it was asked by. It is read from its end,
past the proxies that are trusted: the first address that is not one of them is the client's. What stands before
that could have been written by anybody.
"""

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from router.edge.response import Scope

_MOST_HOPS = 16


class TrustedProxies:
    """`networks` as the configuration has them, such as 10.0.0.0/8. Raises ValueError for what is none."""

    def __init__(self, networks: Sequence[str]) -> None:
        self._networks: list[IPv4Network | IPv6Network] = [ip_network(one, strict=False) for one in networks]

    def __bool__(self) -> bool:
        return bool(self._networks)

    def client(self, scope: Scope) -> tuple[str, int] | None:
        """The client of a request as a proxy names it; None: the connection's own end is the client."""
        peer = scope.get("client")
        if not peer or not self._is_trusted(_address(str(peer[0]))):
            return None
        named = b",".join(value for name, value in scope["headers"] if name == b"x-forwarded-for")
        last: str | None = None
        for text in reversed(named.decode("latin-1").split(",")[-_MOST_HOPS:]):
            address = _address(text.strip())
            if address is None:
                break  # what cannot be read was not appended by a proxy that is trusted
            last = str(address)
            if not self._is_trusted(address):
                break
        return None if last is None else (last, 0)

    def _is_trusted(self, address: IPv4Address | IPv6Address | None) -> bool:
        return address is not None and any(address in network for network in self._networks)


def _address(text: str) -> IPv4Address | IPv6Address | None:
    """An address, with or without a port or brackets; None: it is none."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address
