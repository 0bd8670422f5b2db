"""What an operator may say of tokens mode."""

from pydantic import Field

from router.config.sections import Seconds, Section, Whole


class TokenizationSettings(Section):
    """Whether prompts are known by their token ids, and who makes them."""

    tokenizer: str = Field(
        default="auto",
        min_length=1,
        description="auto, text (none), worker (its /tokenize), or a folder or Hugging Face name on this machine.",
    )
    models: dict[str, str] = Field(default={}, description="Tokenizers of single models: `model: tokenizer`.")
    wait_s: Seconds = Field(
        default=1.0, description="How long a request may wait for its token ids before it goes on as text."
    )
    cache_bytes: Whole = Field(
        default=64 * 1024 * 1024, description="Token ids of parts of prompts kept for reuse, per model."
    )
