import asyncio
import threading

import pytest
from prometheus_client import CollectorRegistry

from router.observability.exposition import gauge
from router.observability.page import Page, sliced

LEVEL = gauge("level", "Text", "x")


class Rows:
    """A source with a number of steps of one row each. `seen`: which thread read each of them."""

    metrics = (LEVEL,)

    def __init__(self, steps=1, value=1.0):
        self.steps = steps
        self.value = value
        self.seen = []

    def step(self):
        """Called at each step."""

    def read(self, into):
        for step in range(self.steps):
            self.step()
            self.seen.append(threading.get_ident())
            into.add(LEVEL, self.value, str(step))
            yield


def page(*sources):
    made = Page(CollectorRegistry())
    for source in sources:
        made.add(source)
    return made


async def test_the_loop_turns_between_the_steps_of_a_scrape_and_the_text_is_made_elsewhere(monkeypatch):
    source = Rows(steps=50)
    made = page(source)
    turns = 0

    def turn():
        nonlocal turns
        turns += 1
        asyncio.get_running_loop().call_soon(turn)

    rendered_by = []
    render = Page._render
    monkeypatch.setattr(
        Page, "_render", lambda self, taken: (rendered_by.append(threading.get_ident()), render(self, taken))[1]
    )
    turn()
    turns_at = []
    source.step = lambda: turns_at.append(turns)
    text = await made.read()
    assert len(set(turns_at)) == 50, "each step is in a turn of the loop of its own"
    assert set(source.seen) == {threading.get_ident()}, "what changes on the loop is read on the loop"
    assert len(rendered_by) == 1
    assert rendered_by[0] != threading.get_ident()
    assert text == made.now()
    assert text.count(b"fairlead_level{") == 50


async def test_the_page_is_of_the_moment_of_its_steps_whatever_changes_while_it_is_rendered(monkeypatch):
    source = Rows()
    made = page(source)
    render = Page._render
    ready, go = threading.Event(), threading.Event()

    def later(self, taken):
        ready.set()
        go.wait(10)
        return render(self, taken)

    monkeypatch.setattr(Page, "_render", later)
    asked = asyncio.create_task(made.read())
    await asyncio.to_thread(ready.wait)
    source.value = 2.0
    go.set()
    assert b'fairlead_level{x="0"} 1.0' in await asked
    assert b'fairlead_level{x="0"} 2.0' in made.now()


async def test_scrapes_that_come_at_once_share_a_page_and_one_that_leaves_takes_nothing_from_the_others():
    source = Rows(steps=5)
    made = page(source)
    asked = [asyncio.create_task(made.read()) for _ in range(20)]
    await asyncio.sleep(0)
    asked[0].cancel()
    pages = await asyncio.gather(*asked[1:])
    assert len(set(pages)) == 1
    assert len(source.seen) == 5
    await made.read()
    assert len(source.seen) == 10


async def test_a_source_that_raises_fails_those_who_asked_and_not_the_next_scrape():
    class Broken(Rows):
        def read(self, into):
            if not self.seen:
                self.seen.append(1)
                raise LookupError("a bug")
            yield from super().read(into)

    made = page(Broken())
    with pytest.raises(LookupError):
        await made.read()
    assert b"fairlead_level" in await made.read()


def test_a_name_can_be_added_once():
    with pytest.raises(ValueError, match="fairlead_level"):
        page(Rows(), Rows())


def test_what_is_sliced_is_a_copy():
    table = {number: number for number in range(10)}
    seen = []
    for part in sliced(table.items(), 4):
        seen += part
        table[len(table)] = 0
    assert [len(part) for part in sliced(range(10), 4)] == [4, 4, 2]
    assert seen == [(number, number) for number in range(10)]
    assert list(sliced([], 4)) == []
