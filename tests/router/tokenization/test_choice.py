import json
from array import array

import pytest
from asked_worker import FakeWorker, member_of
from small_tokenizers import byte_level, save

from router.tokenization import choice as choices
from router.tokenization.choice import Chooser
from router.tokenization.local import LocalTokenizer, NotLoaded, load
from router.tokenization.prompt import Chat, Inexact, Texts
from router.tokenization.remote import RemoteTokenizer

EVENTS = (200, {"0": {"publisher": "zmq"}})


def models(root):
    return 200, {"data": [{"id": "adapter", "root": "/elsewhere", "parent": "m"}, {"id": "m", "root": root}]}


def tokenizes_like(folder):
    """A worker that was started with this folder."""
    tokenizer = load(folder, 1 << 20)

    def answer(body):
        try:
            if "prompt" in body:
                prompt = Texts((body["prompt"],), body["add_special_tokens"])
            else:
                more = {
                    name: body[name]
                    for name in ("add_generation_prompt", "continue_final_message")
                    if name in body
                }
                prompt = Chat(body["messages"], body.get("tools"), more)
            return 200, {"tokens": list(array("I", tokenizer.ids(prompt)))}
        except Inexact as error:
            return 400, {"error": str(error)}

    return answer


async def chosen(worker, wish="auto", *, follows_events=True, load_from=load):
    async def loads(source):
        return load_from(source, 1 << 20)

    async with member_of(worker) as member:
        chooser = Chooser(loads, lambda model: RemoteTokenizer(model, lambda: member, 1000), follows_events)
        return await chooser.choose(wish, "m", member)


async def test_a_model_whose_files_are_here_is_tokenized_here(folder):
    choice = await chosen(FakeWorker(v1__models=models(folder), tokenize=tokenizes_like(folder)))
    assert isinstance(choice.tokenizer, LocalTokenizer)
    assert (choice.why, choice.amiss) == (f"{folder} is here", False)


async def test_a_worker_that_cannot_be_compared_with_is_taken_at_its_word(folder):
    choice = await chosen(FakeWorker(v1__models=models(folder)))
    assert isinstance(choice.tokenizer, LocalTokenizer)


async def test_otherwise_the_worker_tokenizes_where_its_events_make_that_worth_it(folder, tmp_path):
    answers = {"v1__models": models(str(tmp_path / "gone")), "tokenize": tokenizes_like(folder)}
    choice = await chosen(FakeWorker(**answers, kv_event_sources=EVENTS))
    assert isinstance(choice.tokenizer, RemoteTokenizer)
    assert "neither a folder here nor" in choice.why
    assert not choice.amiss
    for sources in ((200, {}), (404, {})):
        choice = await chosen(FakeWorker(**answers, kv_event_sources=sources))
        assert choice.tokenizer is None
        assert choice.why.endswith("its workers report no KV events")
    choice = await chosen(FakeWorker(**answers, kv_event_sources=EVENTS), follows_events=False)
    assert choice.tokenizer is None


async def test_a_worker_without_tokenize_leaves_text():
    choice = await chosen(FakeWorker(v1__models=models("org/gone"), kv_event_sources=EVENTS))
    assert choice.tokenizer is None
    assert "/tokenize: it answers 404" in choice.why
    choice = await chosen(FakeWorker(), "worker")
    assert (choice.tokenizer, choice.amiss) == (None, True)


async def test_without_the_extra_nothing_is_looked_for_here(folder, monkeypatch):
    monkeypatch.setattr(choices, "installed", lambda: False)
    worker = FakeWorker(v1__models=models(folder), tokenize=tokenizes_like(folder), kv_event_sources=EVENTS)
    choice = await chosen(worker)
    assert isinstance(choice.tokenizer, RemoteTokenizer)
    assert choice.why == "the extra `tokens` is not installed"


@pytest.mark.parametrize("other", ["tokenizer", "template"])
async def test_a_worker_that_was_started_otherwise_than_its_files_say_is_asked_instead(folder, tmp_path, other):
    if other == "tokenizer":
        theirs = save(tmp_path, byte_level("<|more|>"))
    else:
        theirs = save(tmp_path, byte_level(), "{% for m in messages %}{{ m.content }}{% endfor %}")
    worker = FakeWorker(v1__models=models(folder), tokenize=tokenizes_like(theirs), kv_event_sources=EVENTS)
    choice = await chosen(worker)
    assert isinstance(choice.tokenizer, RemoteTokenizer)
    assert "differs from what its worker tokenizes" in choice.why
    assert choice.amiss


async def test_a_template_that_is_missing_here_and_not_there_is_a_difference(folder, tmp_path):
    ours = save(tmp_path, byte_level(), None)
    worker = FakeWorker(v1__models=models(ours), tokenize=tokenizes_like(folder), kv_event_sources=EVENTS)
    choice = await chosen(worker)
    assert "no usable chat template" in choice.why
    worker = FakeWorker(v1__models=models(ours), tokenize=tokenizes_like(ours))
    assert isinstance((await chosen(worker)).tokenizer, LocalTokenizer), "missing on both sides"


async def test_what_the_operator_says_is_done_or_said_to_be_amiss(folder, tmp_path):
    worker = FakeWorker(v1__models=models("org/gone"), tokenize=tokenizes_like(folder))
    assert (await chosen(worker, "text")).tokenizer is None
    assert isinstance((await chosen(worker, "worker")).tokenizer, RemoteTokenizer)
    assert isinstance((await chosen(worker, folder)).tokenizer, LocalTokenizer)
    choice = await chosen(worker, str(tmp_path / "gone"))
    assert isinstance(choice.tokenizer, RemoteTokenizer)
    assert "gone" in choice.why
    assert choice.amiss
    choice = await chosen(FakeWorker(), str(tmp_path / "gone"))
    assert choice.tokenizer is None
    assert choice.amiss


async def test_a_tokenizer_that_cannot_be_loaded_has_its_message_and_its_fallback(folder):
    def broken(source, _):
        raise NotLoaded(f"{source}: corrupt")

    worker = FakeWorker(v1__models=models(folder), tokenize=tokenizes_like(folder))
    choice = await chosen(worker, load_from=broken)
    assert choice.tokenizer is None
    assert f"{folder}: corrupt" in choice.why
    assert choice.amiss


@pytest.mark.parametrize(
    "answer",
    [(500, {}), (200, b"x"), (200, {"data": 5}), (200, {"data": [5, {"id": "m"}]}), (200, json.dumps([]))],
)
async def test_a_garbled_list_of_models_leaves_text(answer):
    choice = await chosen(FakeWorker(v1__models=answer))
    assert choice.tokenizer is None
