"""A control plane without a fleet: it does what a test says, and remembers what it was told."""

from collections import deque

import msgspec

from router.port import Dispatch, Identity, Reject, RejectKind, Route, RouteTable, WorkerAddress

MODEL = "tiny"


class FakeControl:
    """Implements `router.port.Control`. `plan`: the answers to `admit` and `failed`, in order."""

    def __init__(self, *urls, plan=(), keys_needed=False):
        workers = {url: WorkerAddress(url, url, served_names=frozenset({MODEL})) for url in urls}
        names = {MODEL: Route(MODEL, MODEL), "alias": Route(MODEL, MODEL, rewrite=MODEL)}
        self.table = RouteTable((MODEL,), names, workers, keys_needed)
        self.plan = deque(plan or [Dispatch(MODEL, url, input_tokens=3) for url in urls])
        self.heard = []
        self.open = set()
        self.appears = False
        """A name that is asked for is served by the time that the workers are asked again."""

    def told(self, message):
        return [values for name, *values in self.heard if name == message]

    def identify(self, keys, user, address=None):
        self.heard.append(("identify", keys, user))
        if self.table.keys_needed and not keys:
            return Reject(RejectKind.UNAUTHORIZED, "An API key is needed.")
        return Identity(user or "anonymous", user or "anonymous")

    def routes(self):
        return self.table

    async def look_again(self, model):
        self.heard.append(("look_again", model))
        if self.appears:
            self.table = msgspec.structs.replace(
                self.table, names={**self.table.names, model: Route(MODEL, model)}
            )

    async def admit(self, facts):
        self.heard.append(("admit", facts))
        self.open.add(facts.id)
        return await self._next(facts.id)

    def first_token(self, request):
        self.heard.append(("first_token", request))

    def prefill_done(self, request):
        self.heard.append(("prefill_done", request))

    def output(self, request, tokens):
        self.heard.append(("output", request, tokens))

    def stored(self, request, response):
        self.heard.append(("stored", request, response))

    async def failed(self, failure):
        self.heard.append(("failed", failure))
        if failure.answering and failure.resume_tokens is None:
            self.open.discard(failure.id)
            return None
        return await self._next(failure.id)

    def settled(self, end):
        self.heard.append(("settled", end))
        self.open.discard(end.id)

    def cancelled(self, request):
        self.heard.append(("cancelled", request))
        self.open.discard(request)

    async def _next(self, request):
        answer = self.plan.popleft()
        if callable(answer):
            answer = await answer()
        if isinstance(answer, Reject):
            self.open.discard(request)
        return answer
