"""A real browser for tests: Debian's Chromium without a window, told what to do through its debugging pipe."""

import asyncio
import base64
import json
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

CHROMIUM = next((path for name in ("chromium", "chromium-browser") if (path := shutil.which(name))), None)
_WITHIN_S = 30.0


class Page:
    """One tab. Every call fails after `_WITHIN_S`."""

    def __init__(self, reader: asyncio.StreamReader, writer: int) -> None:
        self._reader = reader
        self._writer = writer
        self._ids = count(1)
        self._session: str | None = None
        self.asked: list[str] = []
        """URLs of all requests that the page has made."""
        self.problems: list[str] = []
        """Exceptions of scripts, and messages of the console that are errors."""
        self.accepts = True
        """What a confirmation is answered with."""
        self.confirmations: list[str] = []

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command, and take in what happens until its answer comes."""
        number = next(self._ids)
        await self._send(number, method, params)
        async with asyncio.timeout(_WITHIN_S):
            while True:
                message = json.loads((await self._reader.readuntil(b"\0"))[:-1])
                if message.get("id") == number:
                    if "error" in message:
                        raise RuntimeError(f"{method}: {message['error']}")
                    result: dict[str, Any] = message["result"]
                    return result
                await self._happened(message)

    async def _send(self, number: int, method: str, params: dict[str, Any]) -> None:
        command = {"id": number, "method": method, "params": params}
        if self._session is not None:
            command["sessionId"] = self._session
        os.write(self._writer, json.dumps(command).encode() + b"\0")

    async def _happened(self, message: dict[str, Any]) -> None:
        params = message.get("params", {})
        match message.get("method"):
            case "Network.requestWillBeSent":
                self.asked.append(params["request"]["url"])
            case "Runtime.exceptionThrown":
                self.problems.append(params["exceptionDetails"].get("text", ""))
            case "Log.entryAdded" if params["entry"]["level"] == "error":
                self.problems.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
            case "Page.javascriptDialogOpening":
                self.confirmations.append(params["message"])
                await self._send(next(self._ids), "Page.handleJavaScriptDialog", {"accept": self.accepts})

    async def open(self, *, width: int = 1200, height: int = 900, dark: bool = False) -> None:
        """A new tab of this size, in light or dark."""
        target = (await self.call("Target.createTarget", url="about:blank"))["targetId"]
        self._session = (await self.call("Target.attachToTarget", targetId=target, flatten=True))["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            await self.call(f"{domain}.enable")
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        await self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.call("Emulation.setEmulatedMedia", features=[scheme])

    async def go(self, url: str) -> None:
        await self.call("Page.navigate", url=url)

    async def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        answer = await self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{script}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    async def until(self, script: str) -> Any:
        """Wait until an expression is true; its value."""
        async with asyncio.timeout(_WITHIN_S):
            while True:
                value = await self.run(script)
                if value:
                    return value
                await asyncio.sleep(0.05)

    async def picture(self) -> bytes:
        """What the page looks like, as PNG."""
        return base64.b64decode((await self.call("Page.captureScreenshot", format="png"))["data"])


@asynccontextmanager
async def browser(folder: Path) -> AsyncIterator[Page]:
    """A browser of its own with one page; `folder` is for its profile. No name is looked up: it is offline."""
    assert CHROMIUM is not None
    to_it, from_us = os.pipe()
    to_us, from_it = os.pipe()
    os.set_inheritable(to_it, True)
    os.set_inheritable(from_it, True)
    options = [
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
        *("--remote-debugging-pipe", f"--user-data-dir={folder}", "--disable-background-networking"),
        "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
    ]
    # The browser reads its commands from descriptor 3 and answers on 4.
    script = f'exec "$0" "$@" 3<&{to_it} 4>&{from_it}'
    process = await asyncio.create_subprocess_exec(
        *("/bin/bash", "-c", script, CHROMIUM, *options),
        pass_fds=(to_it, from_it),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    os.close(to_it)
    os.close(from_it)
    reader = asyncio.StreamReader(limit=64 << 20)
    pipe = os.fdopen(to_us, "rb", buffering=0)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), pipe
    )
    page = Page(reader, from_us)
    try:
        yield page
    finally:
        os.close(from_us)
        if process.returncode is None:
            process.terminate()
        await process.wait()
        transport.close()
