"""All models' desks: made when a model's first worker can be asked, gone with its last one.

Loading takes seconds and happens beside the traffic, which is routed as text until then.
"""

import asyncio
import gc
import logging
from collections.abc import Callable, Collection, Mapping

from router.edge.execution.worker_connections import WorkerConnection, WorkerConnections
from router.tokenization.choice import Choice, Chooser
from router.tokenization.desk import Desk
from router.tokenization.lanes import Lanes
from router.tokenization.local import LocalTokenizer, load
from router.tokenization.remote import RemoteTokenizer
from router.tokenization.settings import TokenizationSettings

_log = logging.getLogger("fairlead.tokenization")


class Tokenization:
    """The tokenizers of a gateway. `desks` is what a request looks into: absent means text.

    `models` are the base models that have a pool.
    """

    def __init__(
        self,
        settings: TokenizationSettings,
        models: Callable[[], Collection[str]],
        connections: WorkerConnections,
        *,
        follows_events: bool = True,
    ) -> None:
        self.desks: dict[str, Desk] = {}
        self._settings = settings
        self._models = models
        self._connections = connections
        self._lanes = Lanes()
        self._chooser = Chooser(self._load, self._remote, follows_events)
        self._loaded: dict[str, LocalTokenizer] = {}
        self._loading = asyncio.Lock()
        self._choosing: dict[str, asyncio.Task[None]] = {}
        self._said: dict[str, str] = {}
        """What the log says of each model already."""

    def follow(self) -> None:
        """The fleet has changed: choose for models that are new, forget those that are gone."""
        models = self._models()
        for model in [*self._said]:
            if model not in models and model not in self._choosing:
                self.desks.pop(model, None)
                del self._said[model]
        for model in models:
            if model not in self._said and model not in self._choosing and self._member(model) is not None:
                self._choose(model)

    async def aclose(self) -> None:
        """Stop choosing, and take no more work."""
        for task in self._choosing.values():
            task.cancel()
        await asyncio.gather(*self._choosing.values(), return_exceptions=True)
        self._lanes.close()

    def wish(self, model: str) -> str:
        """What the configuration says of a model."""
        return self._settings.models.get(model, self._settings.tokenizer)

    def _choose(self, model: str) -> None:
        if model not in self._choosing:
            task = asyncio.get_running_loop().create_task(self._chosen(model))
            self._choosing[model] = task
            task.add_done_callback(lambda _: self._ended(model))

    def _ended(self, model: str) -> None:
        del self._choosing[model]
        if model not in self._models():
            self.follow()

    async def _chosen(self, model: str) -> None:
        member = self._member(model)
        if member is None:
            return
        try:
            choice = await self._chooser.choose(self.wish(model), model, member)
        except Exception as error:  # noqa: BLE001 - whatever it is, traffic goes on
            _log.exception("%s: its tokenizer could not be chosen", model)
            choice = Choice(None, f"a bug: {error!r}", amiss=True)
        self._install(model, choice)

    def _install(self, model: str, choice: Choice) -> None:
        tokenizer = choice.tokenizer
        if tokenizer is None:
            self.desks.pop(model, None)
            kind = "text"
        else:
            desk = Desk(
                model, tokenizer, self._lanes, wait_s=self._settings.wait_s, distrusted=lambda: self._choose(model)
            )
            kind = desk.kind
            before = self.desks.get(model)
            if before is None or before.kind != kind:  # the same again keeps what it has learned to distrust
                self.desks[model] = desk
        said = f"{kind} ({choice.why})"
        if self._said.get(model) != said:
            self._said[model] = said
            _log.log(logging.WARNING if choice.amiss else logging.INFO, "%s: tokenizer: %s", model, said)

    async def _load(self, source: str) -> LocalTokenizer:
        # One after the other: `transformers` cannot be imported by two threads at the same time.
        async with self._loading:
            if source not in self._loaded:
                self._loaded[source] = await asyncio.to_thread(load, source, self._settings.cache_bytes)
                gc.freeze()  # it lives as long as the process: collections need not walk it
            return self._loaded[source]

    def _remote(self, model: str) -> RemoteTokenizer:
        return RemoteTokenizer(model, lambda: self._member(model), self._settings.cache_bytes)

    def _member(self, model: str) -> WorkerConnection | None:
        """The worker of a model with the fewest requests under way."""
        return min(self._connections.usable(model), key=lambda worker: worker.busy, default=None)

    @property
    def kinds(self) -> Mapping[str, str]:
        """What stands for each model whose tokenizer has been chosen."""
        return {model: self.desks[model].kind if model in self.desks else "text" for model in self._said}
