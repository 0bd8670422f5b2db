"""Who is asking: from keys and the `user` field to a client with its weight and limits.

Three rules. With keys configured, a key decides who it is and `user` only names a part of that client, written
as a path below it (`team/user`): a label and a party to fairness, never a way out of the client's limits. A
client with `trust_user` is a front end for many: there `user` itself is the client. Without any key the gateway
is open: `user`, if given, else `anonymous`.

What is remembered of clients is their quota, see `quotas`.
"""

import hashlib
import hmac
import math
import time
from collections.abc import Callable, Sequence

import msgspec

from router.config.sections import ClientConfig
from router.control.parties.issued_keys import IssuedKey
from router.control.parties.quotas import NO_LIMITS, Limits, Quotas
from router.control.parties.wrong_keys import WrongKeys
from router.control.refused import Refused
from router.port import Identity, Reject, RejectKind

ANONYMOUS = "anonymous"
USER_LENGTH = 64
"""A longer `user` keeps its beginning and gets a digest, so that two long ones stay two."""
_UNSAFE = {ord(character): "_" for character in "/\\\"'`<>{}"}
_NO_KEY = (b"", "")
_STRANGER = Identity(ANONYMOUS, ANONYMOUS)


class Clients:
    """The configured clients, found by key or by name, and the quota of each client.

    `max_tracked` bounds the accounts that are remembered at once.
    """

    def __init__(
        self,
        configs: Sequence[ClientConfig],
        *,
        max_tracked: int = 10_000,
        wrong_keys: WrongKeys | None = None,
        separate_caches: bool = False,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`separate_caches`: no client shares prefix caches with others, but those of its group."""
        self.quota = Quotas(max_tracked, wall)
        self.wrong_keys = WrongKeys(None) if wrong_keys is None else wrong_keys
        self.closed = False
        """A key is needed although there is none yet: keys are created at run time."""
        self._separate = separate_caches
        self._wall = wall
        self._issued: dict[str, IssuedKey] = {}
        self.reload(configs)

    def reload(self, configs: Sequence[ClientConfig]) -> None:
        """Take over a new list. Those that stay keep what was counted for them; new limits apply at once."""
        self._by_name: dict[str, Identity] = {}
        self._limits: dict[str, Limits] = {}
        self._models: dict[str, frozenset[str]] = {}
        self._by_digest: dict[bytes, tuple[bytes, str]] = {}
        self._closing: dict[bytes, tuple[float, str]] = {}
        self._trusting: set[str] = set()
        self._configured = tuple(configs)
        for config in configs:
            self._add(config, keyed=bool(config.digests))
        for issued in self._issued.values():
            self._add_issued(issued)
        self.quota.keep(self._by_name)

    def issue(self, issued: Sequence[IssuedKey]) -> None:
        """Take over keys that were created at run time, or changed; those of the configuration stay."""
        for one in issued:
            before = self._issued.get(one.client.name)
            self._issued[one.client.name] = one
            if before is not None:
                for digest in before.digests():
                    self._by_digest.pop(digest, None)
                    self._closing.pop(digest, None)
            self._add_issued(one)

    def issued(self) -> list[IssuedKey]:
        """Keys that were created at run time, by name."""
        return [self._issued[name] for name in sorted(self._issued)]

    def find_issued(self, name: str) -> IssuedKey | None:
        return self._issued.get(name)

    def is_configured(self, name: str) -> bool:
        """Whether the configuration has this client, or one whose users or parts it would be taken for."""
        return any(
            name == one.name or name.startswith(f"{one.name}/") or one.name.startswith(f"{name}/")
            for one in self._configured
        )

    def beside(self, name: str) -> str | None:
        """The key whose users, or whose own name, would be taken for those of `name`; None: there is none."""
        parts = name.split("/")
        above = ("/".join(parts[:length]) for length in range(1, len(parts)))
        found = next((one for one in above if one in self._issued), None)
        return found or next((one for one in self._issued if one.startswith(f"{name}/")), None)

    def _add(self, config: ClientConfig, *, keyed: bool) -> None:
        limits = Limits(
            config.requests_per_minute,
            config.tokens_per_minute,
            config.max_concurrent,
            config.tokens_per_day,
            config.tokens_per_month,
            shadow=config.shadow,
            counted=keyed and not config.trust_user,
        )
        self._limits[config.name] = NO_LIMITS if limits == NO_LIMITS else limits
        self._models.pop(config.name, None)
        if config.models:
            self._models[config.name] = frozenset(config.models)
        self._by_name[config.name] = Identity(
            config.name,
            config.name,
            config.weight,
            limits_of=config.name,
            key_owner=config.name,
            priority_limit=config.priority_limit,
            team=config.team or "",
            cache_group=self._cache_group(config.name, config.cache_group),
        )
        for digest in config.digests:
            raw = bytes.fromhex(digest.removeprefix("sha256:"))
            self._by_digest[raw] = (raw, config.name)
        if config.trust_user:
            self._trusting.add(config.name)

    def _add_issued(self, issued: IssuedKey) -> None:
        """Beside those of the configuration, which come first where both have a name."""
        name = issued.client.name
        if any(one.name == name for one in self._configured):
            return
        self._add(issued.client, keyed=True)
        for digest, until, why in issued.ends():
            self._by_digest[digest] = (digest, name)
            if until < math.inf:
                self._closing[digest] = (until, why)

    @property
    def keys_needed(self) -> bool:
        """Whether requests without a key are turned away."""
        return bool(self._by_digest) or self.closed

    def models(self, name: str) -> frozenset[str] | None:
        """The models that a client may use; None: all."""
        return self._models.get(name) if self._models else None

    def limits(self, name: str) -> Limits:
        """The limits of a client that is configured or has a key; none for any other."""
        return self._limits.get(name, NO_LIMITS)

    def identify(
        self, keys: Sequence[bytes] = (), user: str | None = None, address: str | None = None, now: float = 0.0
    ) -> Identity:
        """Find the client of a request: `keys` are SHA-256 digests of what was sent as keys. Raises Refused.

        `address`: where it comes from, for those that send wrong keys; None: it was looked at already.
        """
        if not self._by_digest and not self.closed:
            return self._named(user or ANONYMOUS, _STRANGER)
        if address is None:
            owner = self._by_name[self._key_owner(keys)]
        else:
            owner = self._by_name[self._first_look(keys, address, now)]
        if not user:
            return owner
        if owner.client in self._trusting:
            return self._named(user, owner)
        return msgspec.structs.replace(owner, client=f"{owner.client}/{_safe(user)}")

    def _named(self, user: str, like: Identity) -> Identity:
        """Find the configured client of that name, else make one with the weight and limits of `like`.

        Whose key it was stays as it is in `like`.
        """
        name = user if user in self._by_name else _safe(user)
        known = self._by_name.get(name)
        if known is not None:
            limit = known.priority_limit if like.key_owner else None
            return msgspec.structs.replace(known, key_owner=like.key_owner, priority_limit=limit)
        return msgspec.structs.replace(like, client=name, account=name, cache_group=self._cache_group(name))

    def _cache_group(self, name: str, group: str | None = None) -> str:
        if not self._separate:
            return ""
        return f"client {name}" if group is None else f"group {group}"

    def _first_look(self, keys: Sequence[bytes], address: str, now: float) -> str:
        """Whose key it is. Each key is looked at by itself: beside a known one, guessing is not free."""
        waits: list[float] = []
        for key in keys:
            wait_s = self.wrong_keys.wait_s(address, key, now)
            if wait_s > 0:
                waits.append(wait_s)
            elif self.knows(key):
                self.wrong_keys.right(address, key, now)
                return self._key_owner((key,))
            else:
                self.wrong_keys.wrong(address, now)
        if waits:
            message = f"Too many wrong API keys came from your address; try again in {max(waits):.0f} s."
            raise Refused(Reject(RejectKind.OVER_QUOTA, message, retry_after_s=max(waits)))
        return self._key_owner(keys)

    def knows(self, digest: bytes) -> bool:
        """Whether this is a client's key."""
        # The dictionary finds by hash, so its timing tells nothing about the key; the comparison that
        # decides takes constant time all the same.
        return hmac.compare_digest(self._by_digest.get(digest, _NO_KEY)[0], digest)

    def _key_owner(self, keys: Sequence[bytes]) -> str:
        for digest in keys:
            if self.knows(digest):
                if self._closing and (end := self._closing.get(digest)) is not None and self._wall() >= end[0]:
                    raise Refused(Reject(RejectKind.UNAUTHORIZED, end[1]))
                return self._by_digest[digest][1]
        message = (
            "The API key is not known here."
            if keys
            else "An API key is needed: send it as `Authorization: Bearer KEY` or as `x-api-key: KEY`."
        )
        raise Refused(Reject(RejectKind.UNAUTHORIZED, message))


def _safe(user: str) -> str:
    """Make a `user` one step of a path: not empty, bounded, printable, without separators."""
    text = user.strip()
    if len(text) > USER_LENGTH:
        digest = hashlib.sha256(text.encode(errors="replace")).hexdigest()[:16]
        text = f"{text[: USER_LENGTH - 17]}~{digest}"
    if not (text.isascii() and text.isalnum()):
        text = text.translate(_UNSAFE)
        if not text.isprintable():
            text = "".join(character if character.isprintable() else "_" for character in text)
    return text or "_"
