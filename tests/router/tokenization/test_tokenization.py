import asyncio
import logging
import time

from asked_worker import FakeWorker, member_of, until
from prometheus_client import CollectorRegistry

from router.edge.api.parsed_request import Surface
from router.observability.page import Page
from router.tokenization import tokenization as tokenization_room
from router.tokenization.series import TokenizationSeries
from router.tokenization.settings import TokenizationSettings
from router.tokenization.tokenization import Tokenization


class FakeConnections:
    """As much of the edge's `WorkerConnections` as tokenizers ask."""

    def __init__(self, *members):
        self.members = list(members)

    def models(self):
        return ["m"] if self.members else []

    def usable(self, model):
        return list(self.members)


def tokenization_of(*members, settings=None):
    connections = FakeConnections(*members)
    return Tokenization(settings or TokenizationSettings(), connections.models, connections)


def asks(folder):
    return FakeWorker(v1__models=(200, {"data": [{"id": "m", "root": folder}]}))


async def chosen(tokenization):
    tokenization.follow()
    await until(lambda: not tokenization._choosing)


def page(tokenization):
    made = Page(CollectorRegistry())
    made.add(TokenizationSeries(tokenization))
    return made.now().decode()


async def test_a_model_has_a_desk_from_its_first_worker_to_its_last(folder, caplog):
    caplog.set_level(logging.INFO)
    worker = asks(folder)
    async with member_of(worker) as member:
        connections = FakeConnections()
        tokenization = Tokenization(TokenizationSettings(), connections.models, connections)
        await chosen(tokenization)
        assert tokenization.desks == {}
        connections.members.append(member)
        await chosen(tokenization)
        desk = tokenization.desks["m"]
        before = len(worker.asked)
        for _ in range(3):
            await chosen(tokenization)
        assert tokenization.desks["m"] is desk
        assert len(worker.asked) == before
        said = [record.getMessage() for record in caplog.records if record.name == "fairlead.tokenization"]
        assert said == [f"m: tokenizer: local ({folder} is here)"]
        connections.members.clear()
        await chosen(tokenization)
        assert tokenization.desks == {}
        await tokenization.aclose()


async def test_settings_are_per_model(folder):
    settings = TokenizationSettings(tokenizer="text", models={"m": folder})
    async with member_of(asks(folder)) as member:
        tokenization = tokenization_of(member, settings=settings)
        await chosen(tokenization)
        assert tokenization.desks["m"].kind == "local"
        assert tokenization.wish("other") == "text"
        await tokenization.aclose()


async def test_tokenizers_are_loaded_one_after_the_other_and_once(folder, monkeypatch):
    """Two threads that import the library at the same time break it."""
    loading, loaded = [], []

    def load(source, cache_bytes):
        loading.append(source)
        assert len(loading) == 1
        time.sleep(0.02)
        loaded.append(loading.pop())
        return source

    monkeypatch.setattr(tokenization_room, "load", load)
    tokenization = tokenization_of()
    await asyncio.gather(*(tokenization._load(source) for source in ("a", "b", "a")))
    assert loaded == ["a", "b"]


async def test_distrust_has_the_choice_made_again_and_is_kept_if_nothing_changes(folder):
    worker = asks(folder)
    async with member_of(worker) as member:
        tokenization = tokenization_of(member)
        await chosen(tokenization)
        desk = tokenization.desks["m"]
        for _ in range(3):
            desk.saw(Surface.CHAT, 1, 2)
        assert tokenization._choosing
        await chosen(tokenization)
        assert tokenization.desks["m"] is desk
        worker.answers["/tokenize"] = (200, {"tokens": [1]})  # it has become another one
        worker.answers["/kv_event_sources"] = (200, {"0": {}})
        for _ in range(3):
            desk.saw(Surface.COMPLETIONS, 1, 2)
        await chosen(tokenization)
        assert tokenization.desks["m"].kind == "worker"
        await tokenization.aclose()


async def test_what_prometheus_sees(folder):
    async with member_of(asks(folder)) as member:
        tokenization = tokenization_of(member)
        assert "model=" not in page(tokenization)
        await chosen(tokenization)
        desk = tokenization.desks["m"]
        desk.exact = 7
        desk.saw(Surface.CHAT, 1, 2)
        text = page(tokenization)
        for line in (
            'fairlead_tokenizer{kind="local",model="m"} 1.0',
            'fairlead_tokenizer{kind="text",model="m"} 0.0',
            'fairlead_tokenizations_total{model="m",result="exact"} 7.0',
            'fairlead_tokenizations_total{model="m",result="media"} 0.0',
            'fairlead_token_miscounts_total{model="m"} 1.0',
            'fairlead_token_cache_bytes{model="m"} 0.0',
            'fairlead_token_cache_pieces{model="m"} 0.0',
        ):
            assert line in text
        await tokenization.aclose()


async def test_it_can_be_closed_while_it_chooses():
    async def never():
        await asyncio.sleep(30)

    async with member_of(FakeWorker(v1__models=lambda _: (200, never()))) as member:
        tokenization = tokenization_of(member)
        tokenization.follow()
        await asyncio.sleep(0.02)
        await tokenization.aclose()
        assert tokenization.desks == {}
