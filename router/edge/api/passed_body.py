"""What is read of a JSON body that passes through, unscheduled: model, user, and what is kept back of it."""

from dataclasses import dataclass, field

from router.edge.api.counts import check_counts
from router.edge.api.identity_fields import named_anywhere
from router.edge.api.members import Member
from router.edge.api.parsed_request import flag, kept_back, model_of, parsed_object, present, salt_of
from router.edge.pieces import Body


@dataclass(slots=True)
class PassedBody:
    """The few values, and how to change the body (see `rewrite.with_changes`)."""

    body: Body
    members: list[Member] | None = None
    present: frozenset[str] = frozenset()
    changes: dict[str, bytes | None] = field(default_factory=dict)
    model: str | None = None
    user: str | None = None
    salt: str | None = None
    """What separates caches of equal prompts, as the client names it."""
    stream: bool = False


def parse_passed(body: bytes) -> PassedBody:
    """Read a body. Raises BadRequest for one that is no JSON object, or from which no model can be read."""
    fields = parsed_object(body)
    check_counts(fields)
    changes = kept_back(fields, body)
    return PassedBody(
        body=body,
        present=present(fields, changes),
        changes=changes,
        model=model_of(fields),
        user=named_anywhere(fields).user,
        salt=salt_of(fields),
        stream=bool(flag(fields, "stream")),
    )
