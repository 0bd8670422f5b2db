"""The forms of a prompt that is to be tokenized: texts, token ids, or a chat for the model's template.

Exactness is the point. A request whose prompt cannot be foreseen exactly (media, a stored conversation, a shape
that is not known here) raises `Inexact`, and is routed as text.
"""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class Why(Enum):
    """Why a request goes on as text: the values are labels of `fairlead_tokenizations_total`."""

    MEDIA = "media"
    SHAPE = "shape"
    """A form of prompt that is not known here."""
    TEMPLATE = "template"
    """It brings a chat template, or sets what is not the client's to set."""
    STORED = "stored"
    """A part of the conversation lies on a worker."""
    TRUNCATED = "truncated"
    EMBEDDINGS = "embeddings"
    BUSY = "busy"
    """Too much is being tokenized already."""
    SLOW = "slow"
    """It took too long."""
    LONG = "long"
    """Longer than anything that is tokenized here."""
    FAILED = "failed"
    """Template or tokenizer refuse the prompt; mostly the worker will, too."""
    DISTRUSTED = "distrusted"
    """Counts on this surface have not been what workers report."""


class Inexact(Exception):
    """The ids of this prompt cannot be known here."""

    def __init__(self, why: Why, what: str = "") -> None:
        super().__init__(what or why.value)
        self.why = why


@dataclass(frozen=True, slots=True)
class Texts:
    """Prompts that are tokenized as they stand; `special_tokens`: BOS and the like are added."""

    texts: tuple[str, ...]
    special_tokens: bool = True


@dataclass(frozen=True, slots=True)
class Ids:
    """Token ids already: 4 bytes each, in the machine's order (little-endian where anybody runs this)."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation for the chat template, in the chat API's own form."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    arguments: dict[str, Any] = field(default_factory=lambda: {"add_generation_prompt": True})
    """What the template gets besides: generation prompt, documents, the client's `chat_template_kwargs`."""
    special_tokens: bool = False


Prompt = Texts | Ids | Chat

_SETTLED = frozenset(
    {
        *("chat_template", "conversation", "max_length", "messages", "padding", "return_assistant_tokens_mask"),
        *("return_dict", "return_tensors", "tokenize", "tokenizer_kwargs", "tools", "truncation"),
    }
)
"""Template arguments that are not the client's: servers refuse them, or they would mean something else here."""


def listed(value: Any) -> list[dict[str, Any]]:
    """A list of objects, or Inexact."""
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise Inexact(Why.SHAPE)
    return value


def flag(fields: dict[str, Any], name: str, *, default: bool) -> bool:
    """A boolean that may be left out, but not be anything else."""
    value = fields.get(name, default)
    if not isinstance(value, bool):
        raise Inexact(Why.SHAPE)
    return value


def template_arguments(fields: dict[str, Any], effort: Any = None, **settled: Any) -> dict[str, Any]:
    """What the template gets: the client's own arguments below those that the request sets by fields.

    An effort of reasoning also switches thinking on, or off where it is `none`, unless the client says so itself.
    """
    own = fields.get("chat_template_kwargs") or {}
    if not isinstance(own, dict) or own.keys() & _SETTLED:
        raise Inexact(Why.TEMPLATE)
    if effort is not None:
        settled["reasoning_effort"] = effort
        if "enable_thinking" not in own:
            settled["enable_thinking"] = effort != "none"
    return {**own, **{name: value for name, value in settled.items() if value is not None and value != "auto"}}
