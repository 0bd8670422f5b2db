import asyncio
from array import array

import pytest
from asked_worker import FakeWorker, member_of

from router.tokenization.prompt import Chat, Ids, Inexact, Texts, Why
from router.tokenization.remote import RemoteTokenizer

HELLO = [{"role": "user", "content": "Hello"}]


def tokens(*ids):
    return 200, {"tokens": list(ids), "count": len(ids), "max_model_len": 1}


def ids(data):
    return list(array("I", data))


async def test_texts_and_chats_are_asked_for_as_vllm_wants_it():
    worker = FakeWorker(tokenize=tokens(1, 2))
    async with member_of(worker) as member:
        remote = RemoteTokenizer("m", lambda: member, 10_000)
        assert ids(await remote.ids(Texts(("a", "b"), special_tokens=False))) == [1, 2, 1, 2]
        arguments = {
            "add_generation_prompt": False,
            "continue_final_message": True,
            "documents": [{}],
            "mood": "x",
        }
        await remote.ids(Chat(HELLO, [{"type": "function"}], arguments, special_tokens=True))
        assert await remote.ids(Ids(b"1234")) == b"1234"
    assert [body for _, body in worker.asked] == [
        {"model": "m", "prompt": "a", "add_special_tokens": False},
        {"model": "m", "prompt": "b", "add_special_tokens": False},
        {
            "model": "m",
            "messages": HELLO,
            "tools": [{"type": "function"}],
            "add_special_tokens": True,
            "add_generation_prompt": False,
            "continue_final_message": True,
            "chat_template_kwargs": {"documents": [{}], "mood": "x"},
        },
    ]


async def test_the_same_prompt_is_asked_for_once():
    worker = FakeWorker(tokenize=tokens(1))
    async with member_of(worker) as member:
        remote = RemoteTokenizer("m", lambda: member, 10_000)
        for _ in range(3):
            await remote.ids(Texts(("a",)))
        await remote.ids(Texts(("a",), special_tokens=False))
    assert len(worker.asked) == 2


@pytest.mark.parametrize(
    "answer",
    [
        (404, {"detail": "Not Found"}),
        (500, {}),
        (200, b"no json"),
        (200, []),
        (200, {"tokens": "x"}),
        (200, {"tokens": [1, -2]}),
        (200, {"tokens": [1, "2"]}),
        (200, {}),
    ],
)
async def test_an_answer_without_ids_is_none(answer):
    async with member_of(FakeWorker(tokenize=answer)) as member:
        with pytest.raises(Inexact) as inexact:
            await RemoteTokenizer("m", lambda: member, 10_000).ids(Texts(("a",)))
    assert inexact.value.why is Why.FAILED


async def test_a_worker_that_is_gone_and_one_that_never_was_give_no_ids():
    async with member_of(FakeWorker()) as member:
        pass
    for choose in (lambda: member, lambda: None):
        with pytest.raises(Inexact):
            await RemoteTokenizer("m", choose, 10_000).ids(Texts(("a",)))


async def test_whoever_gives_up_waiting_leaves_nothing_open():
    async def never():
        await asyncio.sleep(30)
        return {}

    async with member_of(FakeWorker(tokenize=lambda _: (200, never()))) as member:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(RemoteTokenizer("m", lambda: member, 10_000).ids(Texts(("a",))), 0.05)
        await asyncio.sleep(0.05)
        assert member.upstream.open == 0
