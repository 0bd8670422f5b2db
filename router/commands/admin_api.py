"""The admin API as the operator's commands call it: where it is, its key, and errors in one line."""

import os
from pathlib import Path
from typing import Any, NoReturn

import httpx
import typer

from router.commands.operator_options import DEFAULT_URL, KEY_VARIABLE

_WITHIN_S = 10.0


class AdminApi:
    """Calls below /admin of one gateway. What goes wrong ends the program: 2 for a wrong question, else 1."""

    def __init__(self, url: str, key_file: Path | None) -> None:
        base = url.rstrip("/").removesuffix("/admin")
        if not base.startswith(("http://", "https://")):
            fail(f"{url!r} is no URL; give one such as {DEFAULT_URL}", 2)
        self.url = base
        self.headers = {"authorization": f"Bearer {_key(key_file)}"}

    def get(self, path: str, **query: Any) -> Any:
        """The page at this path, parsed."""
        return self.call("GET", path, params={name: value for name, value in query.items() if value is not None})

    def call(self, method: str, path: str, **more: Any) -> Any:
        """The answer to any method, parsed; `more` goes to httpx."""
        try:
            answer = httpx.request(
                method, f"{self.url}/admin{path}", headers=self.headers, timeout=_WITHIN_S, **more
            )
        except httpx.HTTPError as error:
            fail(f"{self.url} does not answer: {error}", 1)
        if answer.status_code == httpx.codes.UNAUTHORIZED:
            fail(f"{self.url} does not take this key; it is `admin.key` of the configuration", 2)
        try:
            content = answer.json()
        except ValueError:
            fail(f"{self.url}{path} is no page of fairlead's admin API ({answer.status_code})", 1)
        if answer.is_error:
            message = content.get("error", {}).get("message") if isinstance(content, dict) else None
            if answer.status_code == httpx.codes.NOT_FOUND and message is not None and "/docs" in message:
                message = (
                    "there is no admin API at this address: `admin:` is not configured, or has a port of its own"
                )
            fail(str(message or answer.status_code), 2 if answer.is_client_error else 1)
        return content


def _key(file: Path | None) -> str:
    if file is None:
        key = os.environ.get(KEY_VARIABLE, "").strip()
        if not key:
            fail(f"the admin API needs its key: set {KEY_VARIABLE}, or give --key-file", 2)
    else:
        try:
            key = file.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            fail(f"{file} cannot be read: {getattr(error, 'strerror', None) or 'not a text file'}", 2)
    if not key.isascii() or not key.isprintable() or not key:
        fail("the admin key is empty, or has characters that no header can have", 2)
    return key


def fail(message: str, status: int) -> NoReturn:
    """End the program with one line."""
    typer.echo(f"fairlead: {message}", err=True)
    raise typer.Exit(status)
