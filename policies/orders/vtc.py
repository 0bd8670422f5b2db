"""Which client has been served least so far?

Source: VTC, Virtual Token Counter (arXiv 2401.00588, Algorithm 2), weighted, at each level of a tree of parties.

Every account has a counter of the service it has caused, divided by its weight: `w_p` per prompt token when a
request is placed, `w_q` per output token as it streams past. The earliest request of the client with the least
counter is next. A client that begins to wait is lifted, or it could save up what it did not use: to the least
counter among its siblings that wait, and where none does to that of the sibling that waited last. A counter is
never lowered by that [paper].

[ours] Charges are corrected to what the worker reports, as in `dlpm`. Where the first request does not fit, one
worker is reserved for it at once; with one worker nothing else gets the room, as printed, and with several the
others go on. `overdraft` as in `dlpm`; 0 is as printed. Equal counters: order of arrival.

Invariants: among siblings that contend for the same workers, counters differ by at most `U + overdraft`, divided
by the smaller weight, where `U = max(w_p L, w_q M)` for prompts of at most L tokens and M tokens of KV cache; so
they are served alike within `2 (U + overdraft)` (paper). A counter falls only when charges are given back.
"""

from dataclasses import dataclass
from typing import Literal

from policies.knowledge import Knowledge
from policies.orders.kit.accounts import Account, Accounts
from policies.orders.kit.fair_queue import FairQueue


@dataclass(frozen=True, slots=True)
class Settings:
    charge: Literal["input", "extend"] = "input"
    """Prompt tokens that count: all of them (the paper's), or those that had to be computed."""
    input_weight: float = 1.0
    """Service per prompt token, w_p."""
    output_weight: float = 2.0
    """Service per output token, w_q."""
    overdraft: int = 8192
    """Service beyond the least counter, up to which a client may use room beside which an earlier request waits by
    choice for a better worker; 0: never. Less than dlpm's: VTC is here as it is published, and with one prompt of
    8,192 tokens its bound is at most twice the printed one. With longer prompts, and where idle workers cost more
    than fairness over short times, set it to the length of several prompts."""
    patience_s: float = 0.0
    """How long the client whose turn it is may be overtaken before a worker is reserved for it."""


class Vtc(FairQueue):
    """Counters per party over one queue for the whole fleet."""

    def __init__(self, settings: Settings, knowledge: Knowledge) -> None:  # noqa: ARG002 - as every order is built
        super().__init__(
            Accounts(
                settings.input_weight,
                settings.output_weight,
                level=_level,
                whole_prompts=settings.charge == "input",
            ),
            patience_s=settings.patience_s,
            overdraft=settings.overdraft,
            depth=1,
        )

    def turn(self, account: Account) -> float:
        return account.counter

    def due(self, turn: float) -> float:
        return turn

    def lift(self, account: Account) -> None:
        if account.parent is not None:
            account.counter = max(account.counter, _level(account.parent))

    def counter(self, client: str) -> float | None:
        """Service by weight so far, lifts included; None for a client that is not known."""
        account = self.accounts.find(client)
        return None if account is None else account.counter


def _level(parent: Account) -> float:
    """To where a child is lifted that begins to wait now."""
    seated: list[float] = [branch.seats[0][0] for branch in parent.branches.values() if branch.seats]
    if seated:
        return min(seated)
    return 0.0 if parent.last is None else parent.last.counter
