"""May a stream of this request go on at another worker if its own dies?

One pure function, `continuation_of`, over an allow-list: of each member of a body it is known what becomes of it,
and what is not known is not continued. The table in deploy/docs/pages/api.md is `as_markdown`.

A stream goes on as a completion whose prompt is the ids of prompt and answer. It is *exact* where the answer that
comes is one that the undisturbed worker could have given with the same probability: greedy, or sampled without a
seed. Where something is counted over the output alone (penalties), or drawn from a seed, the rest is a valid
answer that is drawn otherwise: only `best_effort` does that. What vLLM keeps beside the tokens (grammars, parsers
of tools, log probabilities) begins anew elsewhere, so such streams are never continued.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from router.edge.api.parsed_request import Surface

_NOTHING: tuple[object, ...] = (None, False, 0, "", [], {})
"""Values by which a member asks for nothing."""


@dataclass(slots=True)
class Continuation:
    """What the rest of a stream is asked for with, should it come to that."""

    passed: Mapping[str, Any] = field(default_factory=dict)
    """Members that go on as they are."""
    max_tokens: int | None = None
    """Of the whole answer; None: as many as the model's context leaves."""
    min_tokens: int = 0
    stops: tuple[str, ...] = ()
    shows_stop: bool = False
    """The answer ends with the stop string, not before it."""
    inexact: str | None = None
    """The member for which the rest is drawn otherwise than the undisturbed answer; None: it is exact."""

    def salted(self, salt: str | None) -> "Continuation":
        """The same with the salt that the gateway has sent, which may not be the client's."""
        return self if salt is None else replace(self, passed={**self.passed, "cache_salt": salt})


@dataclass(frozen=True, slots=True)
class NotContinuable:
    """`why`: the member that forbids it, or a word for what does."""

    why: str


class Rule(Enum):
    """What a member of a body means for a continuation. Values are words of the table."""

    PASSED = "goes on with it"
    DONE = "has done its part in the prompt, or means nothing to it"
    COUNTED = "less what has come"
    MATCHED = "matched by the gateway across the seam"
    INEXACT = "only with `best_effort`"
    NEVER = "not continued"


_PASSED = (
    *("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "logit_bias", "stop_token_ids"),
    *("ignore_eos", "allowed_token_ids", "skip_special_tokens", "spaces_between_special_tokens", "cache_salt"),
)
_DONE = (
    *("model", "messages", "prompt", "stream", "stream_options", "user", "request_id", "priority", "metadata"),
    *("store", "service_tier", "session_id", "safety_identifier", "prompt_cache_key", "documents"),
    *("chat_template", "chat_template_kwargs", "add_generation_prompt", "continue_final_message"),
    *(
        "add_special_tokens",
        "truncate_prompt_tokens",
        "truncation_side",
        "reasoning_effort",
        "parallel_tool_calls",
    ),
)
_INEXACT = ("seed", "presence_penalty", "frequency_penalty", "bad_words")
RULES: Mapping[str, Rule] = {
    **dict.fromkeys(_PASSED, Rule.PASSED),
    **dict.fromkeys(_DONE, Rule.DONE),
    **dict.fromkeys(("max_tokens", "max_completion_tokens", "min_tokens"), Rule.COUNTED),
    **dict.fromkeys(("stop", "include_stop_str_in_output"), Rule.MATCHED),
    **dict.fromkeys(_INEXACT, Rule.INEXACT),
}
"""By member; one that is not here is not continued if it asks for anything (`n`: for more than one)."""

_PASSED_NAMES = frozenset(_PASSED)
_PLAIN = RULES.keys() - _INEXACT
"""Members with which a stream can go on, whatever they say."""
_SURFACES = (Surface.CHAT, Surface.COMPLETIONS)
_LONGEST_STOP = 1024
_PLAIN_PARTS = ("text", "refusal")


def continuation_of(surface: Surface, fields: Mapping[str, Any]) -> Continuation | NotContinuable:
    """What a request's continuation is asked for with, or why there can be none."""
    if surface not in _SURFACES or not fields.get("stream"):
        return NotContinuable("surface" if surface not in _SURFACES else "not_streamed")
    names = fields.keys()
    passed = {name: fields[name] for name in _PASSED_NAMES & names if fields[name] is not None}
    inexact: str | None = None
    for name in names - _PLAIN:
        value = fields[name]
        rule = RULES.get(name, Rule.NEVER)
        if value is None:
            continue
        if rule is Rule.INEXACT:
            if value not in _NOTHING or name == "seed":
                passed[name] = value
                if name != "seed" or fields.get("temperature") != 0:
                    inexact = name
        elif rule is Rule.NEVER and not _asks_for_nothing(name, value):
            return NotContinuable(name if name in _KNOWN else "unknown_member")
    why = _prompt_obstacle(fields) or _stop_obstacle(fields) or _usage_obstacle(fields)
    if why is not None:
        return NotContinuable(why)
    stop = fields.get("stop")
    return Continuation(
        passed=passed,
        max_tokens=_most(surface, fields),
        min_tokens=fields["min_tokens"] if type(fields.get("min_tokens")) is int else 0,
        stops=(stop,) if isinstance(stop, str) and stop else tuple(each for each in stop or () if each),
        shows_stop=fields.get("include_stop_str_in_output") is True,
        inexact=inexact,
    )


_NEVER_WHY: Mapping[str, str] = {
    "n": "several answers in one stream",
    "best_of": "several answers, of which one is chosen at the end",
    "logprobs": "the first leg's would have to be joined to the second's",
    "top_logprobs": "as `logprobs`",
    "prompt_logprobs": "as `logprobs`",
    "echo": "the prompt would be repeated",
    "suffix": "no prompt of ids",
    "prompt_embeds": "no prompt of ids",
    "tools": "what follows may be a call, which only the chat surface parses",
    "tool_choice": "as `tools`, where it names or requires one",
    "response_format": "a grammar begins anew",
    "structured_outputs": "a grammar begins anew",
    "guided_json": "a grammar begins anew",
    "guided_regex": "a grammar begins anew",
    "guided_grammar": "a grammar begins anew",
    "guided_choice": "a grammar begins anew",
    "thinking_token_budget": "counted over the output alone",
    "include_reasoning": "vLLM gives no ids",
    "use_beam_search": "no tokens before the end",
    "return_token_ids": "the client would see ids that are taken back at the seam",
    "return_tokens_as_token_ids": "as `logprobs`",
    "vllm_xargs": "not known what it does",
    "logits_processors": "not known what it does",
    "mm_processor_kwargs": "media are not in the ids",
}
_KNOWN = frozenset(_NEVER_WHY)


def _asks_for_nothing(name: str, value: object) -> bool:
    if name in ("n", "best_of"):
        return value == 1
    if name == "tool_choice":
        return value in ("none", "auto")  # without `tools` it means nothing
    if name == "response_format":
        return isinstance(value, dict) and value.get("type") == "text"
    if name == "include_reasoning":
        return value is True
    return (
        value is not True and value in _NOTHING and not (name == "logprobs" and value == 0 and value is not False)
    )


def _prompt_obstacle(fields: Mapping[str, Any]) -> str | None:
    """Media, whose tokens say nothing without them; several prompts."""
    messages = fields.get("messages")
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, list):
            for part in content:
                if isinstance(part, dict) and part.get("type", "text") not in _PLAIN_PARTS:
                    return "media"
    prompt = fields.get("prompt")
    if isinstance(prompt, list) and (not prompt or type(prompt[0]) is not int) and len(prompt) != 1:
        return "several_prompts"
    return None


def _stop_obstacle(fields: Mapping[str, Any]) -> str | None:
    stop = fields.get("stop")
    if stop is None or stop in _NOTHING:
        return None
    each = [stop] if isinstance(stop, str) else stop
    if not isinstance(each, list) or not all(
        isinstance(text, str) and len(text) <= _LONGEST_STOP for text in each
    ):
        return "stop"
    # How much of the text was looked at for stop strings is not known where tokens before them were exempt.
    return "min_tokens_with_stop" if fields.get("min_tokens") else None


def _usage_obstacle(fields: Mapping[str, Any]) -> str | None:
    options = fields.get("stream_options")
    if isinstance(options, dict) and options.get("continuous_usage_stats") not in _NOTHING:
        return "continuous_usage"
    return None


def _most(surface: Surface, fields: Mapping[str, Any]) -> int | None:
    names = ("max_completion_tokens", "max_tokens") if surface is Surface.CHAT else ("max_tokens",)
    for name in names:
        if type(fields.get(name)) is int:
            most: int = fields[name]
            return most
    return None if surface is Surface.CHAT else 16


def as_markdown() -> str:
    """The table of the documentation."""
    rows = ["| member of the body | what becomes of it |", "|---|---|"]

    def of_rule(rule: Rule) -> str:
        return ", ".join(f"`{name}`" for name, one in RULES.items() if one is rule)

    rows += [f"| {of_rule(rule)} | {rule.value} |" for rule in Rule if rule is not Rule.NEVER]
    rows += [f"| `{name}` | {Rule.NEVER.value}: {why} |" for name, why in _NEVER_WHY.items()]
    rows.append(f"| any other | {Rule.NEVER.value}: nothing is known of it |")
    return "\n".join(rows) + "\n"
