"""What an operator sends is bounded in bytes and in time before any page runs."""

import asyncio

import pytest

from router.control.pages import guard
from router.control.parties.wrong_keys import WrongKeys


async def asked(receive, *, length=None):
    """Whether the page ran, and what was answered: (pages, rejections)."""
    pages, rejected = [], []

    async def page(scope, receive, send):
        pages.append((await receive())["body"])

    def render(reject):
        rejected.append(reject.message)
        return 400, [], b""

    async def send(_):
        """The answer is known from what was rendered."""

    keys = guard.OperatorKeys(list, WrongKeys(10), lambda: 0.0, is_clients=lambda _: False)
    headers = [] if length is None else [(b"content-length", b"%d" % length)]
    scope = {"type": "http", "method": "POST", "path": "/workers", "headers": headers, "client": ("127.0.0.1", 1)}
    keys.reject = lambda *_: None
    await guard.Guard(page, keys, render)(scope, receive, send)
    return pages, rejected


def arriving(*pieces):
    messages = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]

    async def receive():
        if not messages:
            await asyncio.Event().wait()
        message = messages.pop(0)
        return {**message, "more_body": bool(messages) or len(pieces) > 1}

    return receive


async def test_a_whole_body_reaches_the_page():
    assert await asked(arriving(b'{"url": "http://a"}')) == ([b'{"url": "http://a"}'], [])


async def test_a_body_that_never_ends_is_given_up(monkeypatch):
    monkeypatch.setattr(guard, "_WITHIN_S", 0.05)
    assert await asked(arriving(b"{", b'"url"')) == ([], ["The body did not arrive within 0.05 s."])


@pytest.mark.parametrize("length", [None, guard.MOST_BYTES + 1])
async def test_a_body_that_is_too_long_is_refused(length):
    piece = b"x" * (guard.MOST_BYTES + 1)
    pages, rejected = await asked(arriving(piece, b""), length=length)
    assert (pages, rejected) == ([], [f"The body has more than {guard.MOST_BYTES} bytes."])
