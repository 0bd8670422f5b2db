"""Which worker still owes this client its share, and among those, which holds the prompt?

Source: D²LPM, Double Deficit Longest Prefix Match (arXiv 2501.14312, Algorithm 2).

Every client has a deficit `q[w]` per worker, in units of service. A worker is eligible for a client while
`q[w] > 0`; when none is, all of the client's deficits that are used up gain a quantum, as often as it takes. So a
client uses a worker for about a quantum, keeping its prefixes together, and then has to use the others as well:
with a fair order in each worker's queue (DLPM, `binding: early`), clients are served alike by the whole fleet.

In the paper each worker's queue has accounts of its own. Here the order is one for the whole fleet, under early
binding, too: `dlpm` compares what clients were served everywhere, so a client that had more on one worker waits on
another one until the others have caught up. What holds is the theorem in `orders/dlpm.py`, about their service on
the workers for which they contend, and not the paper's bound for each queue.

    select:  A = eligible workers, G = those with the longest match; the fewest requests in G ∩ A, else in A
    bound:   charge the prompt              output:  charge `output_weight` per token
    bound on service [paper]: max W - min W <= 2 |W| (U + Q) among clients backlogged at every worker

[paper] `charge: input`, `inside: least`, `only_under_backlog: false` are the printed algorithm.
[ours] The match is known, so `charge: extend` charges what has to be computed. Eligibility acts only while two or
more clients have requests waiting: with one client there is no other to be fair to. The proof never uses the rule
that picks among the eligible, so `inside` may be another one. A refill is due when a request is bound to a worker
that is not eligible: the choice itself changes nothing.

Invariants: `q[w] <= Q`; with nothing in flight every charge is what workers reported; accounts move only in `on`.
The table of clients is bounded (`orders/kit/accounts.py`); one that is idle may be dropped and starts afresh.
"""

from collections import Counter
from collections.abc import Container
from dataclasses import dataclass
from typing import Literal

from policies.events import Bound, Event, Left, Output, Placed, Queued, WorkerGone
from policies.knowledge import Knowledge
from policies.model import Outcome, Question, Ranked, RequestView, WorkerId, WorkerView
from policies.orders.kit.accounts import Account, Party, WorkerDeficits, party_of
from policies.placements import fairlead, lmetric
from policies.placements.kit.ranking import by_cost, longest_match
from policies.protocol import PlacementPolicy


@dataclass(frozen=True, slots=True)
class Settings:
    quantum: int = 8192
    """Service per refill, Q_w: larger keeps prefixes together longer, smaller is fairer over short times."""
    charge: Literal["extend", "input"] = "extend"
    """Of a prompt: the tokens to compute, or all of them as printed."""
    only_under_backlog: bool = True
    """Eligibility acts only while two or more clients have requests waiting; false: always, as printed."""
    inside: Literal["least", "lmetric", "fairlead"] = "least"
    """Who picks among eligible workers: the longest match and then the fewest requests, or another policy."""
    extend_weight: float = 1.0
    """Service per prompt token, w_e."""
    output_weight: float = 2.0
    """Service per output token, w_q."""


@dataclass(slots=True, eq=False)
class _Attempt:
    """A request as far as it has been heard of."""

    waits: bool = False
    account: Account | None = None
    worker: WorkerId | None = None
    matched: int = 0
    prompt: float = 0.0
    """Tokens of the prompt that are charged."""
    output: int = 0


class D2lpm(PlacementPolicy):
    """Deficits per client and worker, and the rule that picks among the eligible."""

    def __init__(self, settings: Settings, knowledge: Knowledge) -> None:
        self._settings = settings
        self._prefixes = knowledge.prefixes
        self._inside = _inside(settings, knowledge)
        self._deficits = WorkerDeficits(settings.quantum)
        self._attempts: dict[str, _Attempt] = {}
        self._waiting: Counter[Party] = Counter()
        """Requests in the queue, by party; no zeros."""

    def rank(self, question: Question) -> list[Ranked]:
        request, matches, workers = question.request, question.matches, question.workers
        eligible: Container[WorkerId] = [worker.id for worker in workers]
        if not self._settings.only_under_backlog or len(self._waiting.keys() | {party_of(request)}) > 1:
            eligible = self._deficits.eligible(request, [worker.id for worker in workers])
        if self._inside is not None:
            ranking = self._inside.rank(question)
            return sorted(ranking, key=lambda ranked: ranked[0].id not in eligible)
        longest = longest_match(matches, workers)

        def cost(worker: WorkerView, matched: int) -> tuple[float, ...]:
            return worker.id not in eligible, matched != longest, worker.requests, worker.load_s

        return by_cost(question, cost)

    def sizes(self) -> dict[str, int]:
        return {"placement_accounts": len(self._deficits)}

    def deficit(self, client: str, worker: WorkerId) -> float:
        """What a client is owed (positive) or owes at a worker."""
        return self._deficits.deficit(client, worker)

    def on(self, event: Event) -> None:
        """Move the accounts: the only place that does."""
        if isinstance(event, Queued):
            self._wait(event.request, self._attempts.setdefault(event.request.id, _Attempt()))
        elif isinstance(event, Bound):
            self._bind(event)
        elif isinstance(event, Placed):
            self._start(event)
        elif isinstance(event, Output):
            if (attempt := self._attempts.get(event.request.id)) is not None:
                attempt.output += event.tokens
                self._charge(attempt, 0.0, event.tokens)
        elif isinstance(event, Left):
            self._leave(event)
        elif isinstance(event, WorkerGone):
            self._deficits.remove_worker(event.worker)

    def _bind(self, event: Bound) -> None:
        """Charge the prompt as far as it is known; one that chooses anew takes its charge along."""
        request, worker = event.request, event.placement.ranked
        attempt = self._attempts.setdefault(request.id, _Attempt())
        self._give_back(attempt)
        if attempt.account is None:
            attempt.account = self._deficits.open(request)
        attempt.worker = worker
        self._deficits.refill(attempt.account, worker)
        attempt.prompt = request.input_tokens
        if self._settings.charge == "extend":
            attempt.prompt = max(1, request.input_tokens - self._prefixes.match(request).get(worker, 0))
        self._charge(attempt, attempt.prompt, 0)

    def _start(self, event: Placed) -> None:
        """Now the match is certain."""
        request = event.request
        attempt = self._attempts.setdefault(request.id, _Attempt())
        if attempt.worker != event.placement.ranked:
            self._bind(Bound(request, event.placement, event.now))
        self._no_longer_wait(request, attempt)
        attempt.matched = event.matched_tokens
        if self._settings.charge == "extend":
            self._correct(attempt, event.extend_tokens)

    def _leave(self, event: Left) -> None:
        """Replace what was charged by what was computed, and give it back where no worker has done anything.

        As in a queue: a failed attempt or a refused request costs nothing, and one that its client cancelled stays
        charged once it ran.
        """
        request, usage = event.request, event.usage
        attempt = self._attempts.pop(request.id, None)
        if attempt is None:
            return
        self._no_longer_wait(request, attempt)
        if event.placement is None or event.outcome in (None, Outcome.REFUSED):
            self._give_back(attempt)
        elif usage is not None and usage.input_tokens > 0:
            cached = attempt.matched if usage.cached_tokens is None else usage.cached_tokens
            extend = self._settings.charge == "extend"
            self._correct(attempt, max(0, usage.input_tokens - cached) if extend else usage.input_tokens)
        if attempt.account is not None:
            self._deficits.close(attempt.account)

    # -- one attempt

    def _wait(self, request: RequestView, attempt: _Attempt) -> None:
        if not attempt.waits:
            attempt.waits = True
            self._waiting[party_of(request)] += 1

    def _no_longer_wait(self, request: RequestView, attempt: _Attempt) -> None:
        if attempt.waits:
            attempt.waits = False
            party = party_of(request)
            self._waiting[party] -= 1
            if not self._waiting[party]:
                del self._waiting[party]

    def _correct(self, attempt: _Attempt, prompt: float) -> None:
        self._charge(attempt, prompt - attempt.prompt, 0)
        attempt.prompt = prompt

    def _charge(self, attempt: _Attempt, prompt: float, output: int) -> None:
        if attempt.account is not None and attempt.worker is not None:
            settings = self._settings
            service = settings.extend_weight * prompt + settings.output_weight * output
            self._deficits.charge(attempt.account, attempt.worker, service)

    def _give_back(self, attempt: _Attempt) -> None:
        self._charge(attempt, -attempt.prompt, -attempt.output)
        attempt.prompt, attempt.output = 0.0, 0


def _inside(settings: Settings, knowledge: Knowledge) -> PlacementPolicy | None:
    if settings.inside == "lmetric":
        return lmetric.LMetric(lmetric.Settings())
    return fairlead.Fairlead(fairlead.Settings(), knowledge) if settings.inside == "fairlead" else None
