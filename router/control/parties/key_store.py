"""Where keys and what they have used are kept over restarts: an SQLite file, which several gateways may share.

Every call runs in one thread of its own, never in the event loop, and is done as a whole or not at all.
A file that cannot be written is the caller's to retry: what is to be added to a count is still in its hands.
"""

import asyncio
import json
import logging
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from router.control.parties.issued_keys import IssuedKey
from router.control.parties.quotas import Used

_log = logging.getLogger("fairlead.keys")

_T = TypeVar("_T")
_BUSY_S = 2.0
_WHEN_OPENED = (
    "CREATE TABLE IF NOT EXISTS keys (name TEXT PRIMARY KEY, record TEXT NOT NULL)",
    """CREATE TABLE IF NOT EXISTS usage (account TEXT, day TEXT, tokens INTEGER NOT NULL,
    requests INTEGER NOT NULL, at REAL NOT NULL, PRIMARY KEY (day, account))""",
    "CREATE INDEX IF NOT EXISTS usage_at ON usage (at)",
    "DELETE FROM usage WHERE day < date('now', '-400 days')",
)
_ADD = (
    "INSERT INTO usage VALUES (?, ?, ?, ?, ?) ON CONFLICT (day, account) DO UPDATE SET"
    " tokens = tokens + excluded.tokens, requests = requests + excluded.requests, at = excluded.at"
)
_USED = """SELECT account, CASE WHEN day = :today THEN day ELSE :earlier END AS shown, SUM(tokens), SUM(requests)
FROM usage WHERE day >= :month AND account IN (SELECT account FROM usage WHERE at >= :since)
GROUP BY account, shown"""


class KeyStore:
    """One SQLite file. Its methods raise sqlite3.Error if the file cannot be used."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="key store")
        self._opened: sqlite3.Connection | None = None
        self._seen: dict[str, str] = {}
        """The record of each key as it was read or written last; of the thread only."""

    async def changed_keys(self) -> list[IssuedKey]:
        """The keys that others have changed since they were read last; at first, all.

        A record that is none is left out, with a line in the log.
        """

        def read(file: sqlite3.Connection) -> list[IssuedKey]:
            rows = file.execute("SELECT name, record FROM keys").fetchall()
            changed = [(name, record) for name, record in rows if self._seen.get(name) != record]
            self._seen.update(changed)
            return [key for name, record in changed if (key := _loaded(name, record)) is not None]

        return await self._run(read)

    async def add(self, key: IssuedKey) -> bool:
        """Keep a new key. False: there is one of that name already, which stays as it is."""
        record = json.dumps(key.dump())

        def insert(file: sqlite3.Connection) -> bool:
            row = (key.client.name, record)
            added = file.execute("INSERT OR IGNORE INTO keys VALUES (?, ?)", row).rowcount > 0
            if added:
                self._seen[key.client.name] = record
            return added

        return await self._run(insert)

    async def replace(self, key: IssuedKey) -> None:
        """Keep a key as it is now."""
        name, record = key.client.name, json.dumps(key.dump())

        def write(file: sqlite3.Connection) -> None:
            file.execute("INSERT OR REPLACE INTO keys VALUES (?, ?)", (name, record))
            self._seen[name] = record

        await self._run(write)

    async def used(self, today: str, since: float) -> list[Used]:
        """What accounts have used this month, by all gateways: today, and earlier (as the day 00).

        Of the accounts whose use was written at `since`, in seconds since 1970, or later.
        """
        asked = {"today": today, "month": today[:7], "earlier": f"{today[:7]}-00", "since": since}
        rows = await self._run(lambda file: file.execute(_USED, asked).fetchall())
        return [Used(*row) for row in rows]

    async def add_used(self, used: Mapping[tuple[str, str], Iterable[int]], at: float) -> None:
        """Add tokens and requests to accounts and days; `at` is the time of writing, in seconds since 1970."""
        rows = [(account, day, *amounts, at) for (account, day), amounts in used.items()]
        await self._run(lambda file: file.executemany(_ADD, rows))

    async def version(self) -> int:
        """A number that is another one when another gateway has written."""
        ((version,),) = await self._run(lambda file: file.execute("PRAGMA data_version").fetchall())
        return int(version)

    async def aclose(self) -> None:
        """Close the file; what has been asked for before is done."""

        def close() -> None:
            if self._opened is not None:
                self._opened.close()

        await asyncio.get_running_loop().run_in_executor(self._thread, close)
        self._thread.shutdown()

    async def _run(self, act: Callable[[sqlite3.Connection], _T]) -> _T:
        """Do something with the file, in one transaction."""

        def do() -> _T:
            file = self._opened
            if file is None:
                try:
                    self.path.touch(mode=0o600)  # for the gateway's user only
                except OSError as error:
                    raise sqlite3.OperationalError(str(error)) from None
                file = sqlite3.connect(self.path, timeout=_BUSY_S)
                try:
                    file.execute("PRAGMA journal_mode = WAL")
                    with file:
                        for step in _WHEN_OPENED:
                            file.execute(step)
                except sqlite3.Error:
                    file.close()
                    raise
                self._opened = file
            with file:
                return act(file)

        return await asyncio.get_running_loop().run_in_executor(self._thread, do)


def _loaded(name: str, record: str) -> IssuedKey | None:
    try:
        return IssuedKey.load(json.loads(record))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        _log.error("the store's record of the key %s cannot be read: %s", name, error)
        return None
