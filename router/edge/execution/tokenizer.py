"""What the edge wants of a tokenizer: prompts as token ids, learning from counts that were wrong."""

from typing import Protocol

from router.edge.api.parsed_request import ParsedRequest, Surface


class Tokenizer(Protocol):
    """One model's tokenizer."""

    async def ids(self, ask: ParsedRequest) -> bytes | None:
        """The token ids of the request's prompt, 4 bytes each, little-endian; None: it goes on as text."""

    def saw(self, surface: Surface, counted: int, reported: int) -> None:
        """A worker has said how many tokens a prompt had that was counted here."""
