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
    requests INTEGER NOT NULL, PRIMARY KEY (day, account))""",
    "DELETE FROM usage WHERE day < date('now', '-400 days')",
)
_ADD = (
    "INSERT INTO usage VALUES (?, ?, ?, ?) ON CONFLICT (day, account) DO UPDATE SET"
    " tokens = tokens + excluded.tokens, requests = requests + excluded.requests"
)


class KeyStore:
    """One SQLite file. Its methods raise sqlite3.Error if the file cannot be used."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="key store")
        self._opened: sqlite3.Connection | None = None

    async def keys(self) -> list[IssuedKey]:
        """All keys; a record that is none is left out, with a line in the log."""
        rows = await self._run(lambda file: file.execute("SELECT name, record FROM keys").fetchall())
        return [key for name, record in rows if (key := _loaded(name, record)) is not None]

    async def add(self, key: IssuedKey) -> bool:
        """Keep a new key. False: there is one of that name already, which stays as it is."""
        record = json.dumps(key.dump())

        def insert(file: sqlite3.Connection) -> bool:
            row = (key.client.name, record)
            return file.execute("INSERT OR IGNORE INTO keys VALUES (?, ?)", row).rowcount > 0

        return await self._run(insert)

    async def replace(self, key: IssuedKey) -> None:
        """Keep a key as it is now."""
        row = (key.client.name, json.dumps(key.dump()))
        await self._run(lambda file: file.execute("INSERT OR REPLACE INTO keys VALUES (?, ?)", row))

    async def used(self, since: str) -> list[Used]:
        """What has been used from this day on, by all gateways."""
        asked = "SELECT account, day, tokens, requests FROM usage WHERE day >= ?"
        rows = await self._run(lambda file: file.execute(asked, (since,)).fetchall())
        return [Used(*row) for row in rows]

    async def add_used(self, used: Mapping[tuple[str, str], Iterable[int]]) -> None:
        """Add tokens and requests to accounts and days."""
        rows = [(account, day, *amounts) for (account, day), amounts in used.items()]
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
                self.path.touch(mode=0o600)  # for the gateway's user only
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
