"""Keys at run time: created, rotated, disabled, and kept in step with the store, if there is one.

    create ──► store ──► in force here ──► within `_SYNC_S` in force at every gateway of the same store

What keys have used is written to the store every `_SYNC_S`, and what other gateways have written is read. A store
that fails is logged and asked again; meanwhile everything goes on from memory, and no request is refused for it.

Invariants: what has been used is added to the store once: it leaves `Quotas.unsaved` only when the store has it.
"""

import asyncio
import logging
import sqlite3
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TypeVar

from router.config.sections import ClientConfig
from router.control.parties.identity import Clients
from router.control.parties.issued_keys import IssuedKey, new_key
from router.control.parties.key_store import KeyStore
from router.control.refused import Refused
from router.port import Reject, RejectKind

_log = logging.getLogger("fairlead.keys")

_T = TypeVar("_T")
_SYNC_S = 0.5
_OVERLAP_S = 10.0
"""What was written so long before the last reading is read again: a write takes a while until it can be read."""
_LOGGED_AGAIN_S = 60.0
MOST_KEYS = 100_000


class Keyring:
    """The keys that were created at run time. `changed` is called when a key may be needed that was not before."""

    def __init__(
        self,
        clients: Clients,
        store: KeyStore | None,
        changed: Callable[[], None],
        *,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._clients = clients
        self._store = store
        self._changed = changed
        self._wall = wall
        self._task: asyncio.Task[None] | None = None
        self._logged_at = float("-inf")
        self._version: int | None = None
        """Of the store, as it was when all of it was read."""
        self._read_at = 0.0
        if store is not None:
            clients.closed = True
            clients.quota.unsaved = {}

    @property
    def kept(self) -> bool:
        """Whether keys outlive the process."""
        return self._store is not None

    async def start(self) -> None:
        """Read the store, and keep in step with it from then on."""
        if self._store is not None:
            await self.sync()
            self._task = asyncio.create_task(self._follow())

    async def aclose(self) -> None:
        """Write what is left, and close the store."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._store is not None:
            await self.sync()
            await self._store.aclose()

    async def create(self, client: ClientConfig, expires_at: float | None) -> tuple[str, IssuedKey]:
        """A new key, which is told this once. Raises Refused if there is a client of that name."""
        name = client.name
        if self._clients.is_configured(name):
            raise Refused(_wrong(f"the configuration has a client `{name}`, or one that it would be taken for"))
        if self._clients.find_issued(name) is not None:
            raise Refused(_twice(name))
        beside = self._clients.beside(name)
        if beside is not None:
            raise Refused(_wrong(f"`{beside}` is a key, and users of one of them would be taken for the other"))
        if len(self._clients.issued()) >= MOST_KEYS:
            raise Refused(_wrong(f"there are {MOST_KEYS} keys, which is the most"))
        key, digest = new_key()
        issued = IssuedKey(client, digest, self._wall(), expires_at)
        if self._store is not None and not await self._stored(self._store.add(issued)):
            raise Refused(_twice(name))
        self._take(issued)
        return key, issued

    async def rotate(self, name: str, *, keep_old_s: float) -> tuple[str, IssuedKey]:
        """Another key for the same client, told this once; the old one stays good for so long."""
        key, digest = new_key()
        issued = self.find(name).rotated(digest, self._wall(), keep_old_s=keep_old_s)
        await self._replace(issued)
        return key, issued

    async def disable(self, name: str, *, disabled: bool) -> IssuedKey:
        """Let the key be refused from now on, or no longer."""
        issued = replace(self.find(name), disabled=disabled)
        await self._replace(issued)
        return issued

    def find(self, name: str) -> IssuedKey:
        """Raises Refused if there is no such key."""
        found = self._clients.find_issued(name)
        if found is None:
            message = f"There is no key `{name}`; keys of the configuration are changed there."
            raise Refused(Reject(RejectKind.NOT_FOUND, message, param="name"))
        return found

    async def sync(self) -> None:
        """Once: write what was used here, read what others have changed. A store that fails is logged."""
        store = self._store
        if store is None:
            return
        try:
            await self._write(store)
            version = await store.version()
            if version != self._version:
                await self._read(store)
                self._version = version
        except sqlite3.Error as error:
            self._log_failure(error)

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(_SYNC_S)
            await self.sync()

    async def _write(self, store: KeyStore) -> None:
        quota = self._clients.quota
        unsaved, quota.unsaved = quota.unsaved, {}
        if not unsaved:
            return
        try:
            await store.add_used(unsaved, self._wall())
        except sqlite3.Error:
            for at, (tokens, requests) in unsaved.items():
                again = quota.unsaved.setdefault(at, [0, 0])
                again[0] += tokens
                again[1] += requests
            raise

    async def _read(self, store: KeyStore) -> None:
        quota = self._clients.quota
        quota.today.look()
        at = self._wall()
        keys = await store.changed_keys()
        if keys:
            self._clients.issue(keys)
            self._changed()
        quota.restore(await store.used(quota.today.day, self._read_at - _OVERLAP_S))
        self._read_at = at

    async def _replace(self, issued: IssuedKey) -> None:
        if self._store is not None:
            await self._stored(self._store.replace(issued))
        self._take(issued)

    def _take(self, issued: IssuedKey) -> None:
        self._clients.issue([issued])
        self._changed()

    async def _stored(self, writing: Awaitable[_T]) -> _T:
        """What the store answers. Raises Refused if it fails: a change that would not last is not made."""
        try:
            return await writing
        except sqlite3.Error as error:
            message = f"The store cannot be written: {error}; nothing has been changed."
            raise Refused(Reject(RejectKind.UNAVAILABLE, message, retry_after_s=5)) from None

    def _log_failure(self, error: sqlite3.Error) -> None:
        now = self._wall()
        if now - self._logged_at >= _LOGGED_AGAIN_S and self._store is not None:
            self._logged_at = now
            _log.error(
                "the store %s cannot be used: %s; keys and budgets go on from memory", self._store.path, error
            )


def _wrong(message: str) -> Reject:
    return Reject(RejectKind.BAD_REQUEST, message, param="name")


def _twice(name: str) -> Reject:
    return _wrong(f"there is a key `{name}` already; rotate it, or choose another name")
