"""What a client may still ask for: requests and tokens per minute, requests at once, tokens per day and month.

A rate is a token bucket: it holds at most a minute's worth and fills evenly, so a client that was quiet may spend
a minute's worth at once, and never more than that plus the rate over any time. A request larger than the whole
bucket is let in when the bucket is full and leaves a debt.

    Invariants: level <= capacity; open requests of an account = its leases that are not released; an account
    with an open request or a bucket that is not full is never forgotten, because forgetting would forgive.

A budget is of a day or a month of UTC. What is expected of open requests counts as used until they end; then what
was computed does, in the day in which they ended. A request is let in while the budget is not used up, so that it
is exceeded by no more than the last request that was let in.

`shadow` limits refuse nothing; what they would have refused is counted.

Time is an argument, in seconds on any clock that does not go back; days are read from `wall`.
"""

import calendar
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, NamedTuple

from router.control.refused import Refused
from router.port import Reject, RejectKind

MINUTE_S = 60.0
DAY_S = 86400.0
DECEMBER = 12
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
    tokens_per_day: int | None = None
    tokens_per_month: int | None = None
    shadow: bool = False
    """What is exceeded is counted, not refused."""
    counted: bool = False
    """What it uses is counted, limits or none: it has a key."""

    @property
    def any(self) -> bool:
        """Whether one of them can be exceeded."""
        rates = self.requests_per_minute, self.tokens_per_minute, self.max_concurrent
        return any(one is not None for one in (*rates, self.tokens_per_day, self.tokens_per_month))


NO_LIMITS = Limits()


class Used(NamedTuple):
    """What an account has used in a day of UTC, such as 2026-12-01."""

    account: str
    day: str
    tokens: int
    requests: int


class Day:
    """The present day and month of UTC."""

    __slots__ = ("_ends", "_wall", "day", "month")

    def __init__(self, wall: Callable[[], float]) -> None:
        self._wall = wall
        self._ends = 0.0
        self.day = self.month = ""

    def look(self) -> None:
        """Bring `day` and `month` up to date."""
        now = self._wall()
        if now < self._ends and now >= self._ends - DAY_S:
            return
        self._ends = (now // DAY_S + 1) * DAY_S
        self.day = time.strftime("%Y-%m-%d", time.gmtime(now))
        self.month = self.day[:7]

    def until_tomorrow_s(self) -> float:
        return max(1.0, self._ends - self._wall())

    def until_next_month_s(self) -> float:
        at = time.gmtime(self._wall())
        year, month = (at.tm_year + 1, 1) if at.tm_mon == DECEMBER else (at.tm_year, at.tm_mon + 1)
        return max(1.0, calendar.timegm((year, month, 1, 0, 0, 0)) - self._wall())


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
    """What is counted for one client. The counts of days and months are of those of `day` and `month`."""

    __slots__ = (
        *("day", "day_requests", "day_tokens", "limited", "limits", "month", "month_tokens", "name", "open"),
        *("requests", "reserved", "tokens", "would_refuse"),
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.limits = NO_LIMITS
        self.limited = False
        """Whether there is anything that can be exceeded."""
        self.open = 0
        self.requests: _Bucket | None = None
        self.tokens: _Bucket | None = None
        self.reserved = 0
        """Tokens that are expected of what is open."""
        self.day = self.month = ""
        self.day_tokens = self.day_requests = self.month_tokens = 0
        self.would_refuse = 0
        """Requests that shadow limits would have refused."""

    def roll(self, today: Day) -> None:
        """A new day, or month, begins with nothing used."""
        if self.day != today.day:
            self.day, self.day_tokens, self.day_requests = today.day, 0, 0
            if self.month != today.month:
                self.month, self.month_tokens = today.month, 0

    def adopt(self, limits: Limits, now: float) -> None:
        """Follow the client's limits as they are now, keeping what has been used."""
        self.limits = limits
        self.limited = limits.any
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

    __slots__ = ("_account", "_charged", "_quotas", "_released")

    def __init__(self, account: _Account | None, charged: int, quotas: "Quotas | None" = None) -> None:
        self._account = account
        self._charged = charged
        self._quotas = quotas
        self._released = account is None

    def settle(self, tokens: int, now: float) -> None:
        """Replace the estimate by what the request really took so far, prompt and answer together."""
        if self._released or self._account is None:
            return
        bucket = self._account.tokens
        if bucket is not None:
            bucket.fill(now)
            bucket.level = min(bucket.capacity, bucket.level + self._charged - tokens)
        self._account.reserved += tokens - self._charged
        self._charged = tokens

    def release(self) -> None:
        if not self._released and self._account is not None:
            self._released = True
            self._account.open -= 1
            self._account.reserved -= self._charged
            if self._quotas is not None:
                self._quotas.spend(self._account, self._charged)

    def headers(self, now: float) -> tuple[tuple[bytes, bytes], ...]:
        """`x-ratelimit-*` as the account stands now, in OpenAI's names; none without limits."""
        if self._account is None or self._quotas is None:
            return ()
        return self._quotas.headers(self._account, now)


_UNLIMITED = Lease(None, 0)


class Quotas:
    """The accounts of all clients that have limits or keys; of those without keys at most `max_tracked`."""

    def __init__(self, max_tracked: int, wall: Callable[[], float] = time.time) -> None:
        self._max_tracked = max_tracked
        self._accounts: OrderedDict[str, _Account] = OrderedDict()
        self._keyed: dict[str, _Account] = {}
        """Of clients with keys: as many as there are."""
        self.today = Day(wall)
        self.unsaved: dict[tuple[str, str], list[int]] | None = None
        """Tokens and requests by account and day that the store has not yet; None: there is no store."""

    def __len__(self) -> int:
        return len(self._accounts) + len(self._keyed)

    def accounts(self) -> dict[str, _Account]:
        """All accounts that are known, by name."""
        return {**self._accounts, **self._keyed}

    def admit(self, account: str, limits: Limits, tokens: int, now: float) -> Lease:
        """Let a request of about `tokens` tokens in, or raise Refused with the time to wait."""
        if limits is NO_LIMITS or (not limits.counted and limits == NO_LIMITS):
            return _UNLIMITED
        found = self._account(account, limits, now)
        if found.limited or found.limits is not limits:
            found.adopt(limits, now)
        self.today.look()
        found.roll(self.today)
        over, wait_s = _excess(found, tokens, self.today) if found.limited else ((), 0.0)
        if over:
            if not limits.shadow:
                message = f"Over the limit of {' and '.join(over)}; try again in {wait_s:.1f} s."
                headers = self.headers(found, now)
                raise Refused(Reject(RejectKind.OVER_QUOTA, message, retry_after_s=wait_s, headers=headers))
            found.would_refuse += 1
        if found.requests is not None:
            found.requests.level -= 1
        if found.tokens is not None:
            found.tokens.level -= tokens
        found.open += 1
        found.reserved += tokens
        return Lease(found, tokens, self)

    def spend(self, account: _Account, tokens: int) -> None:
        """A request has ended; it took `tokens` tokens."""
        self.today.look()
        account.roll(self.today)
        account.day_tokens += tokens
        account.month_tokens += tokens
        account.day_requests += 1
        if self.unsaved is not None and account.limits.counted:
            unsaved = self.unsaved.setdefault((account.name, self.today.day), [0, 0])
            unsaved[0] += tokens
            unsaved[1] += 1

    def headers(self, account: _Account, now: float) -> tuple[tuple[bytes, bytes], ...]:
        """`x-ratelimit-*` for this account; none without limits."""
        if not account.limited:
            return ()
        rows = self._rows(account, now)
        return tuple(
            (f"x-ratelimit-{what}-{unit}".encode(), value.encode())
            for unit, limit, left, reset_s in rows
            for what, value in (("limit", f"{limit}"), ("remaining", f"{left}"), ("reset", f"{ceil(reset_s)}s"))
        )

    def _rows(self, account: _Account, now: float) -> list[tuple[str, int, int, float]]:
        """Of each limit: its unit, how much it is, what is left of it, and the seconds until all of it is back."""
        rows: list[tuple[str, int, int, float]] = []
        for unit, bucket in (("requests", account.requests), ("tokens", account.tokens)):
            if bucket is not None:
                bucket.fill(now)
                rows.append(
                    (unit, int(bucket.capacity), max(0, int(bucket.level)), bucket.wait_s(bucket.capacity))
                )
        limits = account.limits
        for unit, budget, used, reset_s in (
            ("tokens-day", limits.tokens_per_day, account.day_tokens, self.today.until_tomorrow_s),
            ("tokens-month", limits.tokens_per_month, account.month_tokens, self.today.until_next_month_s),
        ):
            if budget is not None:
                rows.append((unit, budget, max(0, budget - used - account.reserved), reset_s()))
        return rows

    def usage(self, name: str, limits: Limits, now: float) -> dict[str, Any]:
        """What an account has used and may use, for people and programs."""
        self.today.look()
        account = self._keyed.get(name) or self._accounts.get(name) or _Account(name)
        account.adopt(limits, now)
        account.roll(self.today)
        return {
            "day": {"date": self.today.day, "tokens": account.day_tokens, "requests": account.day_requests},
            "month": {"month": self.today.month, "tokens": account.month_tokens},
            "open_requests": account.open,
            "reserved_tokens": account.reserved,
            "limits": [
                {"of": unit, "limit": limit, "remaining": left, "reset_s": round(reset_s, 3)}
                for unit, limit, left, reset_s in self._rows(account, now)
            ],
            "shadow": limits.shadow,
            "would_have_refused": account.would_refuse,
        }

    def restore(self, used: Iterable[Used]) -> None:
        """What the store has of this month, for each account all days of it; what it has not yet comes on top."""
        self.today.look()
        sums: dict[str, list[int]] = {}
        for row in used:
            if row.day[:7] == self.today.month:
                total = sums.setdefault(row.account, [0, 0, 0])
                total[2] += row.tokens
                if row.day == self.today.day:
                    total[0], total[1] = total[0] + row.tokens, total[1] + row.requests
        for name, (day_tokens, day_requests, month_tokens) in sums.items():
            account = self._keyed.get(name)
            if account is None:
                account = self._keyed[name] = _Account(name)
            account.roll(self.today)
            account.day_tokens, account.day_requests, account.month_tokens = day_tokens, day_requests, month_tokens
        for (name, day), (tokens, requests) in (self.unsaved or {}).items():
            account = self._keyed.get(name)
            if account is not None and name in sums and day[:7] == self.today.month:
                account.month_tokens += tokens
                if day == self.today.day:
                    account.day_tokens, account.day_requests = (
                        account.day_tokens + tokens,
                        account.day_requests + requests,
                    )

    def keep(self, names: Iterable[str]) -> None:
        """Clients with keys are these: forget the accounts of others that have nothing open."""
        kept = set(names)
        for name in [name for name, account in self._keyed.items() if name not in kept and not account.open]:
            del self._keyed[name]

    def _account(self, name: str, limits: Limits, now: float) -> _Account:
        if limits.counted:
            keyed = self._keyed.get(name)
            if keyed is None:
                keyed = self._keyed[name] = _Account(name)
            return keyed
        found = self._accounts.get(name)
        if found is None:
            if len(self._accounts) >= self._max_tracked:
                self._forget_one(now)
            found = self._accounts[name] = _Account(name)
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


def _excess(account: _Account, tokens: int, today: Day) -> tuple[Sequence[str], float]:
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
    if limits.tokens_per_day is not None and account.day_tokens + account.reserved >= limits.tokens_per_day:
        over.append(f"{limits.tokens_per_day} tokens per day")
        wait_s = max(wait_s, today.until_tomorrow_s())
    if limits.tokens_per_month is not None and account.month_tokens + account.reserved >= limits.tokens_per_month:
        over.append(f"{limits.tokens_per_month} tokens per month")
        wait_s = max(wait_s, today.until_next_month_s())
    return over, wait_s
