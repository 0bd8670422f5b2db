"""What a client may still ask for: requests and tokens per minute, and requests open at once.

A rate is a token bucket: it holds at most a minute's worth and fills evenly, so a client that was quiet may spend
a minute's worth at once, and never more than that plus the rate over any time. A request larger than the whole
bucket is let in when the bucket is full and leaves a debt.

    Invariants: level <= capacity; open requests of an account = its leases that are not released; an account
    with an open request or a bucket that is not full is never forgotten, because forgetting would forgive.

Time is an argument, in seconds on any clock that does not go back.
"""

from collections import OrderedDict
from dataclasses import dataclass

from router.control.refused import Refused
from router.port import Reject, RejectKind

MINUTE_S = 60.0
CONCURRENT_RETRY_S = 1.0
"""When an open request ends is not known; a second is a polite guess."""
EVICTION_TRIES = 16
"""Accounts looked at per newcomer to find one that may be forgotten."""


@dataclass(frozen=True, slots=True)
class Limits:
    """None: unlimited."""

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    max_concurrent: int | None = None


NO_LIMITS = Limits()


class _Bucket:
    """One rate. `capacity` is the amount per minute; the level may be negative after a correction."""

    __slots__ = ("at", "capacity", "level")

    def __init__(self, capacity: float, now: float) -> None:
        self.capacity = capacity
        self.level = capacity
        self.at = now

    def fill(self, now: float) -> None:
        if now > self.at:
            self.level += (now - self.at) * self.capacity / MINUTE_S
            self.at = now
        self.level = min(self.level, self.capacity)

    def wait_s(self, amount: float) -> float:
        """Seconds until `amount` can be taken; to be asked right after `fill`."""
        missing = min(amount, self.capacity) - self.level
        if (
            missing <= 1e-9 * self.capacity
        ):  # a rounding error must not refuse a client that comes back when told to
            return 0.0
        return missing * MINUTE_S / self.capacity


class _Account:
    """What is counted for one client."""

    __slots__ = ("limits", "open", "requests", "tokens")

    def __init__(self) -> None:
        self.limits = Limits()
        self.open = 0
        self.requests: _Bucket | None = None
        self.tokens: _Bucket | None = None

    def adopt(self, limits: Limits, now: float) -> None:
        """Follow the client's limits as they are now, keeping what has been used."""
        self.limits = limits
        self.requests = _sized(self.requests, limits.requests_per_minute, now)
        self.tokens = _sized(self.tokens, limits.tokens_per_minute, now)

    def owes_nothing(self, now: float) -> bool:
        for bucket in (self.requests, self.tokens):
            if bucket is not None:
                bucket.fill(now)
                if bucket.wait_s(bucket.capacity) > 0:
                    return False
        return self.open == 0


def _sized(bucket: _Bucket | None, capacity: float | None, now: float) -> _Bucket | None:
    if capacity is None:
        return None
    if bucket is None:
        return _Bucket(capacity, now)
    bucket.fill(now)
    bucket.capacity = capacity
    bucket.fill(now)
    return bucket


class Lease:
    """One admitted request. Its holder calls `release` when the request has ended; again is harmless."""

    __slots__ = ("_account", "_charged", "_released")

    def __init__(self, account: _Account | None, charged: int) -> None:
        self._account = account
        self._charged = charged
        self._released = account is None

    def settle(self, tokens: int, now: float) -> None:
        """Replace the estimate by what the request really took so far, prompt and answer together."""
        if self._released or self._account is None:
            return
        bucket = self._account.tokens
        if bucket is not None:
            bucket.fill(now)
            bucket.level = min(bucket.capacity, bucket.level + self._charged - tokens)
        self._charged = tokens

    def release(self) -> None:
        if not self._released and self._account is not None:
            self._released = True
            self._account.open -= 1


_UNLIMITED = Lease(None, 0)


class Quotas:
    """The accounts of all clients that have limits, at most `max_tracked` of them."""

    def __init__(self, max_tracked: int) -> None:
        self._max_tracked = max_tracked
        self._accounts: OrderedDict[str, _Account] = OrderedDict()

    def __len__(self) -> int:
        return len(self._accounts)

    def admit(self, account: str, limits: Limits, tokens: int, now: float) -> Lease:
        """Let a request of about `tokens` tokens in, or raise Refused with the time to wait."""
        if limits is NO_LIMITS or limits == NO_LIMITS:
            return _UNLIMITED
        found = self._account(account, now)
        found.adopt(limits, now)
        over, wait_s = _excess(found, tokens)
        if over:
            message = f"Over the limit of {' and '.join(over)}; try again in {wait_s:.1f} s."
            raise Refused(Reject(RejectKind.OVER_QUOTA, message, retry_after_s=wait_s))
        if found.requests is not None:
            found.requests.level -= 1
        if found.tokens is not None:
            found.tokens.level -= tokens
        found.open += 1
        return Lease(found, tokens)

    def _account(self, name: str, now: float) -> _Account:
        found = self._accounts.get(name)
        if found is None:
            if len(self._accounts) >= self._max_tracked:
                self._forget_one(now)
            found = self._accounts[name] = _Account()
        self._accounts.move_to_end(name)
        return found

    def _forget_one(self, now: float) -> None:
        """Drop the account that has been quiet for longest among those that lose nothing by it."""
        for _ in range(min(EVICTION_TRIES, len(self._accounts))):
            name, account = next(iter(self._accounts.items()))
            if account.owes_nothing(now):
                del self._accounts[name]
                return
            self._accounts.move_to_end(name)
        message = "Too many clients with limits are active at once; try again later."
        raise Refused(Reject(RejectKind.OVERLOADED, message, retry_after_s=5.0))


def _excess(account: _Account, tokens: int) -> tuple[list[str], float]:
    """Which limits stand in the way, in words, and how long until none of them does."""
    over: list[str] = []
    wait_s = 0.0
    limits = account.limits
    if limits.max_concurrent is not None and account.open >= limits.max_concurrent:
        over.append(f"{limits.max_concurrent} open requests")
        wait_s = CONCURRENT_RETRY_S
    for bucket, amount, unit in ((account.requests, 1, "requests"), (account.tokens, tokens, "tokens")):
        if bucket is not None and (wait := bucket.wait_s(amount)) > 0:
            over.append(f"{bucket.capacity:g} {unit} per minute")
            wait_s = max(wait_s, wait)
    return over, wait_s
