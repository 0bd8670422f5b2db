"""Tokens of requests whose bodies do not say how many they have: audio, documents to be scored.

What a worker reports replaces them at the end, where it does. Audio is counted as Whisper computes it, 50
positions of its encoder a second, at 16 kB a second, which lies between compressed and uncompressed speech.
"""

_SPEECH = "/v1/audio/speech"
_SOUNDS = ("/v1/audio/transcriptions", "/v1/audio/translations")
_BYTES_PER_TOKEN = 4
"""Of text, JSON around it included."""
_SOUND_BYTES_PER_TOKEN = 320


def prompt_tokens(path: str, size: int) -> int:
    """Of a body of `size` bytes to this path."""
    return max(1, size // (_SOUND_BYTES_PER_TOKEN if path in _SOUNDS else _BYTES_PER_TOKEN))


def most_output_tokens(path: str) -> int | None:
    """0 where nothing is generated; None: it is not known."""
    return None if path in (_SPEECH, *_SOUNDS) else 0


def output_tokens(path: str, size: int, events: int, *, expected: int) -> int:
    """Of a complete answer: its bytes, or its events, and what had been expected."""
    if most_output_tokens(path) == 0:
        return 0
    if events:
        return events
    return expected if path == _SPEECH else size // _BYTES_PER_TOKEN
