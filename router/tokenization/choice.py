"""Which tokenizer stands for a model: the one it was loaded with if that is here, else its workers', else none.

    auto     local, where the `root` that the worker names is a folder here or in the local Hugging Face cache
             and the extra `tokens` is installed; otherwise the worker's /tokenize, where workers report KV events
             (only then is an exact prompt worth a round trip per request); otherwise text
    worker   the worker's /tokenize; text if it does not answer
    text     none
    PATH     that folder, or that name in the cache; the worker's if it cannot be loaded, or else text

A tokenizer that is loaded here has to agree with the worker's /tokenize on samples, as the server may have been
started with another tokenizer, another template, or arguments for it.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import orjson

from router.edge.execution.worker_connections import WorkerConnection
from router.tokenization.local import LocalTokenizer, NotLoaded, installed
from router.tokenization.prompt import Chat, Inexact, Texts
from router.tokenization.remote import NoAnswer, RemoteTokenizer, ask, exchange, questions

T = TypeVar("T")

_PATIENCE_S = 20.0
"""For everything that is asked of a worker here: it may be busy."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What stands for a model, and why. `tokenizer` None: text. `amiss`: not what the configuration asks for."""

    tokenizer: LocalTokenizer | RemoteTokenizer | None
    why: str
    amiss: bool = False


@dataclass(frozen=True, slots=True)
class Chooser:
    """What a choice is made of. `load` takes a folder or name, in a thread; it raises NotLoaded."""

    load: Callable[[str], Awaitable[LocalTokenizer]]
    remote: Callable[[str], RemoteTokenizer]
    follows_events: bool = True

    async def choose(self, wish: str, model: str, member: WorkerConnection) -> Choice:
        """For the model that this worker serves."""
        if wish == "text":
            return Choice(None, "as configured")
        if wish == "worker":
            return await self._worker(model, member, "as configured", wanted=True)
        source, problem = (wish, "") if wish != "auto" else await self._source(model, member)
        if source:
            try:
                tokenizer = await self.load(source)
                problem = await _disagreement(tokenizer, model, member)
                if not problem:
                    return Choice(tokenizer, f"{source} is here")
            except NotLoaded as error:
                problem = str(error)
        return await self._worker(model, member, problem, wanted=wish != "auto", amiss=bool(source))

    async def _source(self, model: str, member: WorkerConnection) -> tuple[str, str]:
        """Where the model's files are on this machine: the source, or "" and why there is none."""
        if not installed():
            return "", "the extra `tokens` is not installed"
        try:
            root = await _root(model, member)
        except NoAnswer as error:
            return "", f"/v1/models: {error}"
        if not await asyncio.to_thread(_at_hand, root):
            return "", f"{root or 'its root'} is neither a folder here nor in the local Hugging Face cache"
        return root, ""

    async def _worker(
        self, model: str, member: WorkerConnection, before: str, *, wanted: bool, amiss: bool = False
    ) -> Choice:
        if not wanted and not (self.follows_events and await _publishes_events(member)):
            return Choice(None, f"{before}; its workers report no KV events", amiss)
        try:
            await _answered(member, model, Texts(("a",)))
        except NoAnswer as error:
            return Choice(None, f"{before}; the worker's /tokenize: {error}", amiss=amiss or wanted)
        return Choice(self.remote(model), before, amiss)


def _at_hand(source: str) -> bool:
    if not source:
        return False
    if os.path.isdir(source):  # noqa: PTH112 - `source` may be a name
        return True
    try:
        from huggingface_hub import try_to_load_from_cache  # noqa: PLC0415 - comes with the extra
        from huggingface_hub.errors import HFValidationError  # noqa: PLC0415
    except ImportError:
        return False
    try:
        return isinstance(try_to_load_from_cache(source, "tokenizer_config.json"), str)
    except HFValidationError:
        return False


async def _root(model: str, member: WorkerConnection) -> str:
    answer = await _patiently(exchange(member, b"GET", b"/v1/models"))
    data = answer.get("data")
    for entry in data if isinstance(data, list) else []:
        if isinstance(entry, dict) and entry.get("id") == model and isinstance(entry.get("root"), str):
            return str(entry["root"])
    return ""


async def _publishes_events(member: WorkerConnection) -> bool:
    if member.address.kv_events is not None:
        return member.address.kv_events
    try:
        return bool(await _patiently(exchange(member, b"GET", b"/kv_event_sources")))
    except NoAnswer:
        return False


async def _disagreement(tokenizer: LocalTokenizer, model: str, member: WorkerConnection) -> str:
    """Where a tokenizer differs from its worker's; "" if nowhere, or if the worker has none to compare with."""
    for name, sample in _SAMPLES.items():
        try:
            theirs = await _answered(member, model, sample)
        except NoAnswer:
            continue
        try:
            ours = await asyncio.to_thread(tokenizer.ids, sample)
        except Inexact as error:
            return f"{tokenizer.source} fails on {name}: {error}"
        if ours != theirs:
            return f"{tokenizer.source} differs from what its worker tokenizes on {name}"
    return ""


async def _answered(member: WorkerConnection, model: str, sample: Texts | Chat) -> bytes:
    (question,) = questions(sample)
    return await _patiently(ask(member, orjson.dumps({"model": model, **question})))


async def _patiently(answer: Awaitable[T]) -> T:
    try:
        return await asyncio.wait_for(answer, _PATIENCE_S)
    except TimeoutError:
        raise NoAnswer(f"no answer within {_PATIENCE_S:g} s") from None


def _chat(*turns: tuple[str, str], **more: object) -> Chat:
    messages = [{"role": role, "content": content} for role, content in turns]
    tools = [{"type": "function", "function": {"name": "now", "description": "The time", "parameters": _NOTHING}}]
    goes_on = bool(more.get("goes_on"))
    arguments = {"add_generation_prompt": not goes_on, "continue_final_message": goes_on}
    return Chat(messages, tools if more.get("tools") else None, arguments)


_NOTHING = {"type": "object", "properties": {}}
_PARTS = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
_SAMPLES: dict[str, Texts | Chat] = {
    "a text": Texts(("  It's 3 o'clock,\n\tüé 中文 🙂 2024",)),
    "an empty text": Texts(("",)),
    "a chat": _chat(("user", "Hello")),
    "a system prompt": _chat(("system", "Be kind."), ("user", "Hello"), ("assistant", "Hi."), ("user", " Bye ")),
    "a chat in parts": Chat([{"role": "user", "content": _PARTS}]),
    "an answer that goes on": _chat(("user", "Hello"), ("assistant", "Good mor"), goes_on=True),
    "a chat with a tool": _chat(("user", "What time is it?"), tools=True),
}
