"""uvicorn as what runs our connections: sockets, TLS and accept loops are its part."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from router.config.sections import Limits, Listen
from router.edge.connection import connection_class
from router.edge.listener import Listener

_FORCED_WITHIN_S = 1
"""Once streams are cut off, connections get this long to close."""


class Server(uvicorn.Server):
    """uvicorn without signal handlers: the router has its own."""

    def __init__(self, config: uvicorn.Config, listener: Listener) -> None:
        super().__init__(config)
        self._listener = listener

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def close_behind_answers(self) -> None:
        """Each answer that begins from now on is the last on its connection."""
        self._listener.closing = True

    def reconfigure(self, listen: Listen, limits: Limits) -> None:
        """Take over what may change while it listens. Raises OSError for certificates that cannot be used.

        They are read again, as their content may be new. `listen` has some exactly if it had some at the start.
        """
        config = self.config
        self._listener.configure(listen, limits)
        if config.ssl is not None and listen.tls_certificate is not None:
            # Handshakes that begin from now on use what the context has then.
            config.ssl.load_cert_chain(listen.tls_certificate, listen.tls_key, password="")


def make_server(app: Any, listener: Listener, listen: Listen, *, host: str, port: int, tls: bool) -> Server:
    """A server for this ASGI application."""
    return Server(
        uvicorn.Config(
            app,
            host=host,
            port=port,
            http=connection_class(listener),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=listen.backlog,
            timeout_graceful_shutdown=_FORCED_WITHIN_S,
            ssl_certfile=listen.tls_certificate if tls else None,
            ssl_keyfile=listen.tls_key if tls else None,
        ),
        listener,
    )


async def stop(servers: list[Server], serving: list[asyncio.Task[None]]) -> None:
    """Cut off what is still open, and close the listeners."""
    for server in servers:
        for task in list(server.server_state.tasks):
            task.cancel()
        server.should_exit = True
    await asyncio.gather(*serving, return_exceptions=True)
