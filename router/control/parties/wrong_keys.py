"""Addresses that send wrong keys have to wait: guessing keys is slow, however fast the guesses come.

Each address may be wrong `per_minute` times a minute, as a token bucket; beyond that no key from there is looked
at until there is room again, right or wrong, so that the answer tells nothing about the guess. Keys that have been
right from the same address are exempt: behind a reverse proxy all clients have one address, and one of them that
guesses must not lock the others out.

Invariants: at most `most` addresses are known, those that were heard of last; at most `_REMEMBERED` keys of each,
as digests. An IPv6 address stands for its network of 64 bits, which is what one client has.
"""

from ipaddress import AddressValueError, IPv6Address

from workers.bounds.bounded_map import BoundedMap

MINUTE_S = 60.0
_REMEMBERED = 32
_NETWORK_BITS = 64


class _Address:
    __slots__ = ("at", "left", "right")

    def __init__(self, left: float, now: float) -> None:
        self.left = left
        """Wrong keys that may still come."""
        self.at = now
        self.right: BoundedMap[bytes, None] = BoundedMap(_REMEMBERED)


class WrongKeys:
    """See the module. Times are seconds of a clock that never goes back; `per_minute` None: all are let in."""

    def __init__(self, per_minute: float | None, most: int = 10_000) -> None:
        self.per_minute = per_minute
        self._addresses: BoundedMap[str, _Address] = BoundedMap(most)

    def __len__(self) -> int:
        return len(self._addresses)

    def wait_s(self, address: str, key: bytes, now: float) -> float:
        """How long until this key is looked at; 0: it is now."""
        found = self._addresses.get(_network(address)) if self._addresses else None
        if found is None or self.per_minute is None or key in found.right:
            return 0.0
        left = self._left(found, now)
        return 0.0 if left >= 1 else (1 - left) * MINUTE_S / self.per_minute

    def wrong(self, address: str, now: float) -> None:
        """A key from there was not known."""
        if self.per_minute is not None:
            found = self._at(address, now)
            found.left, found.at = max(0.0, self._left(found, now) - 1), now

    def right(self, address: str, key: bytes, now: float) -> None:
        """A key from there was known."""
        if self.per_minute is not None:
            found = self._addresses.get(_network(address))
            if found is None or key not in found.right:
                self._at(address, now).right[key] = None

    def _at(self, address: str, now: float) -> _Address:
        network = _network(address)
        found = self._addresses.refresh(network)
        if found is None:
            found = self._addresses[network] = _Address(max(1.0, self.per_minute or 0.0), now)
        return found

    def _left(self, found: _Address, now: float) -> float:
        per_minute = self.per_minute or 0.0
        return min(max(1.0, per_minute), found.left + (now - found.at) * per_minute / MINUTE_S)


def _network(address: str) -> str:
    if ":" not in address:
        return address
    try:
        whole = IPv6Address(address)
    except AddressValueError:
        return address
    return str(whole.ipv4_mapped or IPv6Address(int(whole) >> _NETWORK_BITS << _NETWORK_BITS))
