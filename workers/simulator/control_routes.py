"""The endpoints of one worker that generate nothing: probes, metrics, models, tokenizer, scores."""

import time
from typing import Any

from workers.simulator import requests
from workers.simulator.api_errors import invalid
from workers.simulator.conversations import anthropic_messages
from workers.simulator.exchange import Exchange
from workers.simulator.exposition import CONTENT_TYPE, exposition
from workers.simulator.inference import read_body
from workers.simulator.kv_publisher import KvPublisher
from workers.simulator.real_time import LiveEngine
from workers.simulator.requests import Served
from workers.simulator.tokens import chat_tokens, detokenize, tokenize

VERSION = "0.32.0"
"""The version of vLLM whose surface this is."""


_PERMISSION = {
    "id": "",
    "object": "model_permission",
    "created": 0,
    "allow_create_engine": False,
    "allow_sampling": True,
    "allow_logprobs": True,
    "allow_search_indices": False,
    "allow_view": True,
    "allow_fine_tuning": False,
    "organization": "*",
    "group": None,
    "is_blocking": False,
}


class SideRoutes:
    """What a worker answers without its engine."""

    def __init__(self, served: Served, live: LiveEngine, publisher: KvPublisher | None = None) -> None:
        self.publisher = publisher
        self.served = served
        self.live = live
        self.started = time.time()

    async def empty(self, exchange: Exchange) -> None:
        await exchange.raw(200, b"", b"text/plain")

    async def version(self, exchange: Exchange) -> None:
        await exchange.json(200, {"version": VERSION})

    async def load(self, exchange: Exchange) -> None:
        await exchange.json(200, {"server_load": self.live.calls})

    async def kv_event_sources(self, exchange: Exchange) -> None:
        await exchange.json(200, {} if self.publisher is None else self.publisher.sources())

    async def reset_prefix_cache(self, exchange: Exchange) -> None:
        """As vLLM in development mode: it can only forget what is not in use, and tells so with its next step."""
        await exchange.json(200, {"success": self.live.engine.reset_prefix_cache()})

    async def metrics(self, exchange: Exchange) -> None:
        text = exposition(self.live, self.served.aliases[0], self.started)
        await exchange.raw(200, text.encode(), CONTENT_TYPE.encode())

    async def models(self, exchange: Exchange) -> None:
        base, created = self.served.aliases[0], int(self.started)
        card = {"object": "model", "created": created, "owned_by": "vllm"}
        longest = self.served.max_model_len
        data: list[dict[str, Any]] = [
            {"id": name, **card, "root": self.served.model, "parent": None, "max_model_len": longest}
            for name in self.served.aliases
        ]
        data += [
            {"id": name, **card, "root": name, "parent": base, "max_model_len": None} for name in self.served.loras
        ]
        for number, model in enumerate(data):
            model["permission"] = [{**_PERMISSION, "id": f"modelperm-{number:016x}", "created": created}]
        await exchange.json(200, {"object": "list", "data": data})

    async def tokenize(self, exchange: Exchange) -> None:
        body = read_body(exchange)
        self.served.line(body)
        if body.get("messages") is not None:
            requests.check_messages(body, "messages")
            ids = chat_tokens(body)
        elif isinstance(body.get("prompt"), str):
            ids = tokenize(body["prompt"])
        else:
            raise invalid("body.prompt", "Field required")
        longest = self.served.max_model_len
        await exchange.json(200, {"count": len(ids), "max_model_len": longest, "tokens": ids, "token_strs": None})

    async def detokenize(self, exchange: Exchange) -> None:
        body = read_body(exchange)
        self.served.line(body)
        ids = body.get("tokens")
        if not isinstance(ids, list) or not all(type(token) is int for token in ids):
            raise invalid("body.tokens", "Input should be a list of integers")
        await exchange.json(200, {"prompt": detokenize(ids)})

    async def count_tokens(self, exchange: Exchange) -> None:
        body = read_body(exchange)
        messages = anthropic_messages(body)
        count = len(chat_tokens({**body, "messages": messages}))
        await exchange.json(200, {"input_tokens": count, "context_management": {"original_input_tokens": count}})

    async def score(self, exchange: Exchange) -> None:
        body = read_body(exchange)
        left = requests.read_prompts(body, "text_1" if "text_1" in body else "queries", self.served)
        right = requests.read_prompts(body, "text_2" if "text_2" in body else "documents", self.served)
        left = left * len(right) if len(left) == 1 else left
        data = [
            {"index": index, "object": "score", "score": _likeness(one, other)}
            for index, (one, other) in enumerate(zip(left, right, strict=False))
        ]
        tokens = sum(map(len, left)) + sum(map(len, right))
        answer = {"id": f"score-{exchange.request_id}", "object": "list", "created": int(time.time())}
        spent = {"prompt_tokens": tokens, "total_tokens": tokens}
        await exchange.json(200, {**answer, "model": self.served.line(body)[0], "data": data, "usage": spent})

    async def rerank(self, exchange: Exchange) -> None:
        body = read_body(exchange)
        [query] = requests.read_prompts({"query": body.get("query")}, "query", self.served)
        documents = requests.read_prompts(body, "documents", self.served)
        results = [
            {
                "index": index,
                "document": {"text": detokenize(ids)},
                "relevance_score": _likeness(query, ids),
            }
            for index, ids in enumerate(documents)
        ]
        results.sort(key=lambda result: (-float(str(result["relevance_score"])), str(result["index"])))
        tokens = len(query) * len(documents) + sum(map(len, documents))
        answer = {"id": f"rerank-{exchange.request_id}", "model": self.served.line(body)[0]}
        top = results[: body.get("top_n") or None]
        await exchange.json(200, {**answer, "usage": {"total_tokens": tokens}, "results": top})


def _likeness(left: list[int], right: list[int]) -> float:
    """Share of common tokens, 0..1."""
    one, other = set(left), set(right)
    return len(one & other) / max(1, len(one | other))
