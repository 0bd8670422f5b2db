"""What control hears of a request: all that placing and charging takes, no byte of its body beside the key."""

from router.edge.api.parsed_request import ParsedRequest
from router.port import Facts, Identity

_ID_BYTES = 4


def facts_of(
    ask: ParsedRequest, *, request: str, identity: Identity, served_name: str, age_s: float, whole: bool
) -> Facts:
    """`request`: its id to control. `age_s`: seconds since its first byte. `whole`: see `Facts`."""
    ids = ask.ids
    alone = ids is not None and ask.prompts == 1  # no cache holds several prompts in a row
    return Facts(
        id=request,
        identity=identity,
        model=served_name,
        age_s=age_s,
        prompt=ids if ids is not None and alone else ask.prompt,
        unit_bytes=_ID_BYTES if alone else 1,
        input_tokens=len(ids) // _ID_BYTES if ids is not None else None,
        salt=ask.salt if alone else None,
        prompt_bytes=ask.prompt_bytes,
        all_there=ask.all_there,
        prompts=ask.prompts,
        media=ask.media,
        sequences=ask.sequences,
        max_output_tokens=ask.max_output_tokens,
        streams=ask.stream,
        priority=ask.priority,
        session=ask.session,
        previous_response=ask.previous_response,
        references=ask.references,
        response=ask.response,
        whole=whole,
    )
