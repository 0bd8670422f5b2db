"""Chance that belongs to a request: asking twice about it gives the same answer."""

import xxhash

from policies.model import RequestView


def draw(request: RequestView, seed: int) -> int:
    """64 random bits that follow from the request's id and the seed."""
    return xxhash.xxh3_64_intdigest(request.id.encode(), seed)
