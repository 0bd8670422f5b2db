"""Bodies of the API: read, checked, and turned into what one call asks of the engine."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import orjson

from workers.simulator.api_errors import bad_request, invalid, missing, prompt_too_long, unknown_model
from workers.simulator.reply import Reply, Vocabulary, cut_off, going_on, reply_key
from workers.simulator.sequences import draw_output_tokens
from workers.simulator.tokens import at_least, chat_tokens, least_value, tokenize

_MAX_SEQUENCES = 16_384
_MAX_LOGPROBS = 20


@dataclass(frozen=True, slots=True)
class Served:
    """What one worker serves."""

    model: str
    names: Sequence[str] = ()
    """Names of the base model, the first is shown in answers; empty: the model's own."""
    loras: Sequence[str] = ()
    max_model_len: int = 131_072
    seed: int = 0
    vocabulary: Vocabulary = "english"
    """What its answers are made of."""

    @property
    def aliases(self) -> list[str]:
        return list(self.names) or [self.model]

    def line(self, body: dict[str, Any]) -> tuple[str, str | None]:
        """The model name that the answer shows, and the LoRA adapter if one was asked for."""
        name = body.get("model")
        if not name or name in self.aliases:
            return self.aliases[0], None
        if name in self.loras:
            return name, name
        raise unknown_model(name, self.aliases)


@dataclass(slots=True)
class ApiRequest:
    """What a call wants, independent of the endpoint."""

    body: dict[str, Any]
    line: str
    lora: str | None
    prompts: list[list[int]]
    n: int = 1
    max_tokens: int = 16
    min_tokens: int = 0
    ignore_eos: bool = False
    stream: bool = False
    include_usage: bool = False
    continuous_usage: bool = False
    logprobs: int | None = None
    """Alternatives per token, None for no log probabilities at all."""
    priority: int = 0
    cache_salt: str | None = None
    fixed: str | None = None
    """Text that the answer has to be: arguments of a tool call or a structured answer."""
    tool: str | None = None
    stops: list[str] = field(default_factory=list)
    may_go_on: bool = False
    """Its prompt is no conversation: it may hold the beginning of the answer."""
    spoiled: bool = False
    """The KV of its prompt is not its own."""

    @property
    def prompt_tokens(self) -> int:
        return sum(map(len, self.prompts))

    def reply(self, served: Served, prompt: list[int], choice: int) -> Reply:
        """The answer that this prompt gets as its `choice`; equal on every worker with this seed."""
        seed, said = served.seed, 0
        if self.may_go_on and choice == 0:
            said, key = going_on(prompt, seed, served.vocabulary)
        else:
            key = reply_key(seed, choice, prompt)
        if self.spoiled:
            key = hash((key, 1))
        if self.fixed is not None:
            ids = tokenize(self.fixed)
            fits = len(ids) < self.max_tokens
            return Reply(key, min(len(ids) + 1, self.max_tokens), ended_by_stop=fits, fixed=ids)
        limit = self.max_tokens
        least = self.min_tokens + said if self.min_tokens else 0
        total = limit if self.ignore_eos else draw_output_tokens(seed, key, least, limit + said) - said
        reply = Reply(
            key,
            max(1, total),
            ended_by_stop=total < limit,
            vocabulary=served.vocabulary,
            said=said,
            before=cut_off(prompt) if self.may_go_on else b"",
        )
        if self.stops:
            include = bool(self.body.get("include_stop_str_in_output"))
            reply.stop_at(self.stops, include=include, after=self.min_tokens)
        return reply


def chat_request(body: dict[str, Any], served: Served, headers: dict[str, str]) -> ApiRequest:
    """`POST /v1/chat/completions`."""
    messages = check_messages(body, "messages")
    line, lora = served.line(body)
    check_size(sum(len(str(message.get("content") or "")) for message in messages), served)
    request = ApiRequest(body, line, lora, [chat_tokens(body)])
    if body.get("logprobs"):
        request.logprobs = body.get("top_logprobs") or 0
    _force(request)
    _common(request, served, headers, body.get("max_completion_tokens") or body.get("max_tokens"))
    return request


def completion_request(body: dict[str, Any], served: Served, headers: dict[str, str]) -> ApiRequest:
    """`POST /v1/completions`."""
    line, lora = served.line(body)
    request = ApiRequest(body, line, lora, read_prompts(body, "prompt", served), may_go_on=True)
    if isinstance(body.get("logprobs"), int):
        request.logprobs = int(body["logprobs"])
    _force(request)
    _common(request, served, headers, body.get("max_tokens", 16))
    return request


def conversation_request(
    body: dict[str, Any], messages: list[dict[str, Any]], served: Served, headers: dict[str, str]
) -> ApiRequest:
    """`/v1/responses` and `/v1/messages`, once their input is written as chat messages."""
    line, lora = served.line(body)
    check_size(sum(len(str(message.get("content") or "")) for message in messages), served)
    request = ApiRequest(body, line, lora, [chat_tokens({**body, "messages": messages})])
    _common(request, served, headers, body.get("max_output_tokens") or body.get("max_tokens"))
    return request


def embedding_request(body: dict[str, Any], served: Served, headers: dict[str, str]) -> ApiRequest:
    """`POST /v1/embeddings`: a prefill and nothing else."""
    line, lora = served.line(body)
    if body.get("messages"):
        prompts = [chat_tokens({**body, "messages": check_messages(body, "messages")})]
    else:
        prompts = read_prompts(body, "input", served)
    request = ApiRequest({**body, "stream": False, "n": 1}, line, lora, prompts)
    _common(request, served, headers, 1)
    return request


def check_messages(body: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """The messages of a body, each with a role."""
    messages = body.get(name)
    if messages is None:
        raise missing(f"body.{name}")
    if not isinstance(messages, list):
        raise invalid(f"body.{name}", "Input should be a valid list", "list_type")
    if not messages:
        raise bad_request("Cannot apply chat template to an empty conversation. Provide at least one message.")
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            raise invalid(f"body.{name}.{index}", "Input should be a valid dictionary")
        if not isinstance(message.get("role"), str):
            raise missing(f"body.{name}.{index}.role")
        if not isinstance(message.get("content"), str | list | None):
            raise invalid(f"body.{name}.{index}.content", "Input should be a valid string or list")
    return messages


def check_size(characters: int, served: Served) -> None:
    """Refuse what is far too long before it is tokenized."""
    least = -(-characters // 5)
    if least >= 2 * served.max_model_len:
        raise prompt_too_long(least, served.max_model_len)


def read_prompts(body: dict[str, Any], name: str, served: Served) -> list[list[int]]:
    """A text, texts, token ids, or lists of token ids, as lists of token ids."""
    value = body.get(name)
    if name == "prompt" and not value:
        raise bad_request(
            "Either prompt or prompt_embeds must be provided and non-empty. (parameter=prompt)", "prompt"
        )
    if value is None:
        raise missing(f"body.{name}")
    if (isinstance(value, list) and value and all(type(item) is int for item in value)) or isinstance(value, str):
        value = [value]
    if not isinstance(value, list) or not value:
        raise invalid(f"body.{name}", "Input should be a text, texts, token ids or lists of token ids")
    prompts: list[list[int]] = []
    for item in value:
        if isinstance(item, str):
            if at_least(item) >= 2 * served.max_model_len:
                raise prompt_too_long(at_least(item), served.max_model_len)
            prompts.append(tokenize(item))
        elif isinstance(item, list) and all(type(part) is int and part >= 0 for part in item):
            prompts.append(item)
        else:
            raise invalid(f"body.{name}", "Input should be a text or token ids")
    return prompts


def _force(request: ApiRequest) -> None:
    """Where the answer is bound to a form, fix it: tool choice or response format."""
    body = request.body
    tools, choice = body.get("tools") or [], body.get("tool_choice", "auto")
    functions: list[dict[str, Any]] = [
        tool["function"]
        for tool in tools
        if isinstance(tool, dict) and isinstance(tool.get("function"), dict) and tool["function"].get("name")
    ]
    if isinstance(choice, dict):
        function = choice.get("function")
        name = function.get("name") if isinstance(function, dict) else None
        functions = [function for function in functions if function["name"] == name]
        if not functions:
            raise bad_request(
                f"tool_choice names the function {name!r}, which `tools` does not have", "tool_choice"
            )
    elif choice != "required":
        functions = []
    elif not functions:
        raise bad_request("When using `tool_choice`, `tools` must be set. (parameter=tool_choice)", "tool_choice")
    if functions:
        request.tool = functions[0]["name"]
        request.fixed = orjson.dumps(least_value(functions[0].get("parameters") or {})).decode()
        return
    form = body.get("response_format")
    if isinstance(form, dict) and form.get("type") in ("json_object", "json_schema"):
        schema = form.get("json_schema")
        schema = schema.get("schema") if isinstance(schema, dict) else {}
        request.fixed = orjson.dumps(least_value(schema)).decode()


def _common(request: ApiRequest, served: Served, headers: dict[str, str], max_tokens: Any) -> None:
    body, limit = request.body, served.max_model_len
    request.stream = bool(body.get("stream"))
    options = body.get("stream_options") or {}
    if options and not request.stream:
        raise bad_request(
            "Stream options can only be defined when `stream=True`. (parameter=stream_options)", "stream_options"
        )
    request.include_usage = bool(options.get("include_usage"))
    request.continuous_usage = request.include_usage and bool(options.get("continuous_usage_stats"))
    request.n = 1 if body.get("n") is None else body["n"]
    if request.n < 1:
        raise bad_request(f"n must be at least 1, got {request.n}.")
    _check_sampling(request)
    if request.n * len(request.prompts) > _MAX_SEQUENCES:
        raise bad_request(f"n must be at most {_MAX_SEQUENCES}, got {request.n}.", "n")
    if request.logprobs is not None and request.logprobs > _MAX_LOGPROBS:
        raise bad_request(
            f"Requested sample logprobs of {request.logprobs}, which is greater than max allowed: {_MAX_LOGPROBS} "
            f"(parameter=logprobs, value={request.logprobs})",
            "logprobs",
        )
    _check_prompts(request, limit)
    _limit_output(request, limit, max_tokens)
    request.ignore_eos = bool(body.get("ignore_eos"))
    request.cache_salt = body.get("cache_salt")
    stop = body.get("stop")
    request.stops = [stop] if isinstance(stop, str) else [text for text in stop or () if isinstance(text, str)]
    _read_headers(request, headers)


def _check_sampling(request: ApiRequest) -> None:
    temperature = request.body.get("temperature")
    if temperature is None:
        return
    if temperature < 0:
        at = f"(parameter=temperature, value={float(temperature)})"
        raise bad_request(f"temperature must be non-negative, got {float(temperature)}. {at}", "temperature")
    if temperature == 0 and request.n > 1:
        raise bad_request(f"n must be 1 when using greedy sampling, got {request.n}.")


def _check_prompts(request: ApiRequest, limit: int) -> None:
    for prompt in request.prompts:
        if not prompt:
            raise bad_request("The decoder prompt cannot be empty", "prompt")
        if len(prompt) >= limit:
            raise prompt_too_long(len(prompt), limit)


def _limit_output(request: ApiRequest, limit: int, max_tokens: Any) -> None:
    """Read `max_tokens` and `min_tokens`; what does not fit behind the longest prompt is cut."""
    longest = max(map(len, request.prompts))
    request.max_tokens = limit - longest if max_tokens is None else max_tokens
    if request.max_tokens < 1:
        at = f"(parameter=max_tokens, value={request.max_tokens})"
        raise bad_request(f"max_tokens must be at least 1, got {request.max_tokens}. {at}", "max_tokens")
    if request.max_tokens > limit:
        raise bad_request(
            f"max_tokens={request.max_tokens} cannot be greater than max_model_len={limit}. Please request fewer "
            f"output tokens. (parameter=max_tokens, value={request.max_tokens})",
            "max_tokens",
        )
    if request.max_tokens + longest > limit:
        request.max_tokens = limit - longest
    request.min_tokens = request.body.get("min_tokens") or 0
    if request.min_tokens > request.max_tokens:
        raise bad_request(
            f"min_tokens must be less than or equal to max_tokens={request.max_tokens}, got {request.min_tokens}.",
            "min_tokens",
        )


def _read_headers(request: ApiRequest, headers: dict[str, str]) -> None:
    request.priority = request.body.get("priority") or 0
    try:
        request.priority = int(headers.get("x-vllm-priority", request.priority))
        rank = int(headers.get("x-data-parallel-rank", 0))
    except ValueError:
        raise bad_request("X-Vllm-Priority and X-data-parallel-rank must be integers.") from None
    if rank:
        raise bad_request(f"data_parallel_rank {rank} is out of range [0, 1).")


def vector(token_ids: Sequence[int], dimensions: int) -> list[float]:
    """A unit vector that depends on nothing but the tokens."""
    digest = blake2b(orjson.dumps(list(token_ids), option=orjson.OPT_PASSTHROUGH_SUBCLASS)).digest()
    raw = [digest[index % 64] / 127.5 - 1.0 + index / 4096 for index in range(dimensions)]
    norm = sum(value * value for value in raw) ** 0.5 or 1.0
    return [value / norm for value in raw]
