"""A model's own tokenizer and chat template, loaded here by `transformers` as a worker loads them.

`transformers` is an optional dependency (the extra `tokens`), heavy to import, and only imported when a tokenizer
is loaded. Nothing is downloaded and no code of a model is run: what is not on this machine is not there.
"""

import importlib.util
import os
from typing import Any

from router.tokenization.encoder import Encoder, Look
from router.tokenization.prompt import Chat, Ids, Inexact, Prompt, Why
from router.tokenization.template import Template


class NotLoaded(Exception):
    """A tokenizer cannot be had. `str()` is the reason, for people."""


class LocalTokenizer:
    """Prompts to ids. Thread-safe."""

    def __init__(self, source: str, encoder: Encoder, template: Template | None, no_template: str = "") -> None:
        self.source = source
        """Folder or name it was loaded from."""
        self.encoder = encoder
        self._template = template
        self._no_template = no_template

    def look(self, prompt: Prompt) -> list[Look]:
        """What is known of a prompt; chats are rendered for that. Raises Inexact."""
        if isinstance(prompt, Ids):
            return []
        texts = (self._render(prompt),) if isinstance(prompt, Chat) else prompt.texts
        return [self.encoder.look(text, special_tokens=prompt.special_tokens) for text in texts]

    def finish(self, looks: list[Look]) -> bytes:
        """The ids, 4 bytes each, little-endian, several texts one after the other."""
        return b"".join([self.encoder.finish(look) for look in looks])

    def ids(self, prompt: Prompt) -> bytes:
        """Both at once. Raises Inexact."""
        return prompt.data if isinstance(prompt, Ids) else self.finish(self.look(prompt))

    def _render(self, chat: Chat) -> str:
        if self._template is None:
            raise Inexact(Why.FAILED, self._no_template)
        return self._template.render(chat)


def installed() -> bool:
    """Whether the extra is there. Nothing is imported to find out."""
    return importlib.util.find_spec("transformers") is not None


def load(source: str, cache_bytes: int) -> LocalTokenizer:
    """Load from a folder, or by a name from the local Hugging Face cache. Takes seconds. Raises NotLoaded."""
    # One prompt at a time in a thread of ours: threads of its own would take cores away from the gateway, and
    # every process started later would be warned of them.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # It would say on standard error that PyTorch is missing, which is not needed.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    try:
        from transformers import AutoTokenizer  # noqa: PLC0415 - see above
    except ImportError as error:
        raise NotLoaded(
            f"the extra `tokens` is missing or broken (pip install 'fairlead-router[tokens]'): {error}"
        ) from None
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(source, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise NotLoaded(f"{source}: {_first_line(error)}") from error
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise NotLoaded(f"{source}: {type(tokenizer).__name__} is none of the fast tokenizers")
    try:
        encoder = Encoder(backend, cache_bytes)
    except Exception as error:
        raise NotLoaded(f"{source}: its tokenizer does not work: {_first_line(error)}") from error
    try:
        return LocalTokenizer(source, encoder, Template(tokenizer))
    except Exception as error:  # noqa: BLE001 - it can still tokenize texts
        return LocalTokenizer(source, encoder, None, f"there is no usable chat template: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
