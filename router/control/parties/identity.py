"""Who is asking: from keys and the `user` field to a client with its weight and limits.

Three rules. With keys configured, a key decides who it is and `user` only names a part of that client, written
as a path below it (`team/user`): a label and a party to fairness, never a way out of the client's limits. A
client with `trust_user` is a front end for many: there `user` itself is the client. Without any key the gateway
is open: `user`, if given, else `anonymous`.

What is remembered of clients is their quota, see `quota`.
"""

import hashlib
import hmac
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from router.config.sections import ClientConfig
from router.control.parties.quotas import NO_LIMITS, Limits, Quotas
from router.edge.errors import Unauthorized

ANONYMOUS = "anonymous"
USER_LENGTH = 64
"""A longer `user` keeps its beginning and gets a digest, so that two long ones stay two."""
_UNSAFE = {ord(character): "_" for character in "/\\\"'`<>{}"}


@dataclass(frozen=True, slots=True)
class Client:
    """The sender of one request."""

    path: str
    """Name for labels and fairness: `team`, `team/user`."""
    account: str
    """Whom the limits count for: `team`, for all its users together."""
    weight: float = 1.0
    limits: Limits = NO_LIMITS


_STRANGER = Client(ANONYMOUS, ANONYMOUS)


class Clients:
    """The configured clients, found by key or by name, and the quota of everybody.

    `max_tracked` bounds the accounts that are remembered at once.
    """

    def __init__(self, configs: Sequence[ClientConfig], *, max_tracked: int = 10_000) -> None:
        self.quota = Quotas(max_tracked)
        self.reload(configs)

    def reload(self, configs: Sequence[ClientConfig]) -> None:
        """Take over a new list. Whoever stays keeps what was counted for them; new limits apply at once."""
        self._by_name: dict[str, Client] = {}
        self._by_digest: dict[bytes, tuple[bytes, str]] = {}
        self._trusting: set[str] = set()
        for config in configs:
            limits = Limits(config.requests_per_minute, config.tokens_per_minute, config.max_concurrent)
            limits = NO_LIMITS if limits == NO_LIMITS else limits
            self._by_name[config.name] = Client(config.name, config.name, config.weight, limits)
            for digest in config.digests:
                raw = bytes.fromhex(digest.removeprefix("sha256:"))
                self._by_digest[raw] = (raw, config.name)
            if config.trust_user:
                self._trusting.add(config.name)

    def identify(
        self, authorization: bytes | None = None, x_api_key: bytes | None = None, user: str | None = None
    ) -> Client:
        """Find the client of a request. Raises Unauthorized; no message repeats what was sent."""
        return self.part(self.owner(authorization, x_api_key), user)

    def owner(self, authorization: bytes | None, x_api_key: bytes | None) -> Client | None:
        """Whose key this is; None where none are needed. Raises Unauthorized."""
        return self._by_name[self._key_owner(authorization, x_api_key)] if self._by_digest else None

    def part(self, owner: Client | None, user: str | None) -> Client:
        """Who `user` is to the owner of the key."""
        if owner is None:
            return self._named(user or ANONYMOUS, _STRANGER)
        if not user:
            return owner
        if owner.path in self._trusting:
            return self._named(user, owner)
        return Client(f"{owner.path}/{_safe(user)}", owner.account, owner.weight, owner.limits)

    def _named(self, user: str, like: Client) -> Client:
        """Find the configured client of that name, else make one with the weight and limits of `like`."""
        known = self._by_name.get(user)
        if known is None:
            name = _safe(user)
            known = self._by_name.get(name) or replace(like, path=name, account=name)
        return known

    def _key_owner(self, authorization: bytes | None, x_api_key: bytes | None) -> str:
        given = False
        for key in _keys(authorization, x_api_key):
            given = True
            digest = hashlib.sha256(key).digest()
            # The dictionary finds by hash, so its timing tells nothing about the key; the comparison that
            # decides takes constant time all the same.
            found, owner = self._by_digest.get(digest, (b"", ""))
            if hmac.compare_digest(found, digest):
                return owner
        if given:
            raise Unauthorized("The API key is not known here.")
        if authorization:
            raise Unauthorized("The Authorization header should read `Bearer` and an API key.")
        raise Unauthorized("An API key is needed: send it as `Authorization: Bearer KEY` or as `x-api-key: KEY`.")


def _keys(authorization: bytes | None, x_api_key: bytes | None) -> Iterator[bytes]:
    """What might be a key, OpenAI's place for it first, then Anthropic's."""
    if authorization:
        scheme, _, key = authorization.strip().partition(b" ")
        if scheme.lower() == b"bearer" and key.strip():
            yield key.strip()
    if x_api_key and x_api_key.strip():
        yield x_api_key.strip()


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
