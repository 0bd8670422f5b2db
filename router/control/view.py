"""From the edge's facts to the request as the scheduler sees it."""

from policies.estimates.answer_length import AnswerLengths
from policies.model import PrefixKey, RequestView, WorkerId
from router.control.token_ratio import TokenRatio
from router.port import Facts, Identity

_ID_BYTES = 4


def request_view(
    facts: Facts, lengths: AnswerLengths, *, ratio: TokenRatio, pinned: WorkerId | None, now: float
) -> RequestView:
    """The scheduler's view. `ratio` counts prompts whose ids are not known; times are the loop's."""
    identity = facts.identity
    tokens_per_byte = ratio.tokens_per_byte(facts.model)
    input_tokens = count_input(facts, tokens_per_byte, ratio.tokens_per_medium(facts.model))
    length = lengths.estimate(identity.client, facts.model, input_tokens, facts.max_output_tokens)
    return RequestView(
        id=facts.id,
        client=identity.client,
        served_name=facts.model,
        key=prefix_key(facts, tokens_per_byte),
        input_tokens=input_tokens,
        expected_output_tokens=length.expected,
        length=length,
        arrived=now - facts.age_s,
        max_output_tokens=facts.max_output_tokens,
        sequences=facts.sequences,
        streams=facts.streams,
        weight=identity.weight,
        party=_party(identity),
        weights=(1.0, identity.weight) if identity.team else (),
        priority=_priority(facts),
        session=facts.session,
        media=facts.media,
        whole=facts.whole,
        pinned=pinned,
    )


def _priority(facts: Facts) -> int:
    """What a request names as its priority, but no more urgent than its client may."""
    limit = facts.identity.priority_limit
    return facts.priority if limit is None else max(limit, facts.priority)


def _party(identity: Identity) -> tuple[str, ...]:
    """Team, account, user, each inside the one before it: users of one key share what the key is owed."""
    if identity.team:
        inner = (identity.account,) if identity.account == identity.client else (identity.account, identity.client)
        return (identity.team, *inner)
    if not identity.account or identity.account == identity.client:
        return (identity.client,)
    return identity.account, identity.client


def prefix_key(facts: Facts, tokens_per_byte: float) -> PrefixKey:
    """What decides which caches hold a part of the prompt."""
    if facts.unit_bytes == _ID_BYTES:
        salt = b"" if facts.salt is None else facts.salt.encode()
        return PrefixKey(facts.prompt, _ID_BYTES, 1.0, salt)
    return PrefixKey(facts.prompt, 1, tokens_per_byte)


def count_input(facts: Facts, tokens_per_byte: float, tokens_per_medium: float) -> int:
    """Prompt tokens: as counted by the edge, else estimated."""
    if facts.input_tokens is not None:
        return max(1, facts.input_tokens)
    return max(1, int(key_bytes(facts) * tokens_per_byte)) + int(tokens_per_medium * len(facts.media))


def key_bytes(facts: Facts) -> int:
    """How long the key of a prompt is, before it is cut."""
    return max(facts.prompt_bytes, len(facts.prompt))
