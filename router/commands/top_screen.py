"""The screen of `fairlead top`: the overview of the admin API as tables, and the keys that change it."""

import os
import select
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from router.commands.explain_text import printable, seconds

_SORTS: dict[str, tuple[str, Callable[[dict[str, Any]], Any]]] = {
    "w": ("worker", lambda row: row["worker"]),
    "b": ("batch", lambda row: -row["batch"]),
    "p": ("prefill", lambda row: -row["prefill_owed_tokens"]),
    "k": ("kv", lambda row: -(row["kv_share"] or 0.0)),
    "h": ("hits", lambda row: -(row["hit_share"] or 0.0)),
    "t": ("tokens", lambda row: -row["tokens_per_s"]),
}
_BY_NAME = dict(_SORTS.values())
_COLOURS = {"up": "green", "suspect": "yellow", "draining": "yellow", "starting": "yellow", "down": "red"}
_HEAD, _PER_TABLE = 2, 3
"""Lines of the screen that are no rows: the title and the keys; of each table its head and rules."""


def print_once(told: dict[str, Any], sort: str) -> None:
    """Print the overview and be done."""
    console = Console()
    console.print(screen(told, sort, rows=200, paused=False))


def follow(read: Callable[[], dict[str, Any]], sort: str, every_s: float) -> None:
    """Show the overview until q or Ctrl-C. Without a terminal to read keys from it goes on until Ctrl-C."""
    console = Console()
    told, paused, looked_at = read(), False, time.monotonic()
    with _keys() as pressed, Live(console=console, screen=True, auto_refresh=False) as live:
        try:
            while True:
                live.update(screen(told, sort, rows=console.height, paused=paused), refresh=True)
                key = pressed(max(0.05, looked_at + every_s - time.monotonic()))
                if key in {"q", "\x03"}:
                    return
                if key == " ":
                    paused = not paused
                elif key in _SORTS:
                    sort = _SORTS[key][0]
                if not paused and time.monotonic() >= looked_at + every_s:
                    told, looked_at = read(), time.monotonic()
        except KeyboardInterrupt:
            return


def screen(told: dict[str, Any], sort: str, *, rows: int, paused: bool) -> Group:
    """The whole screen; `rows` is how many lines it may have."""
    left = max(9, rows - _HEAD - 3 * _PER_TABLE)
    workers = sorted(told["workers"], key=_BY_NAME[sort])[: max(3, left // 2)]
    left -= len(workers)
    clients = told["clients"][: max(3, left // 2)]
    decisions = told["decisions"][: max(3, left - len(clients))]
    at = time.strftime("%H:%M:%S", time.localtime(told["time"]))
    title = Text.assemble(
        ("fairlead ", "bold"),
        f"{told['open'] - told['queued']} running, {told['queued']} waiting, {len(told['workers'])} workers  {at}",
        ("  paused" if paused else "", "yellow"),
    )
    keys = Text(f"sorted by {sort}: w b p k h t   space pauses   q ends", "dim")
    return Group(title, _workers(workers), _clients(clients), _decisions(decisions), keys)


def _workers(rows: list[dict[str, Any]]) -> Table:
    table = _table("worker", "state", ">batch", ">prefill owed", ">KV", ">hits", ">tokens/s")
    for row in rows:
        why = f"{row['state']}: {row['why']}" if row["why"] else row["state"]
        table.add_row(
            _text(row["worker"]),
            Text(printable(why), _COLOURS.get(row["state"], "")),
            f"{row['batch']}/{row['slots']}" if row["slots"] else str(row["batch"]),
            str(row["prefill_owed_tokens"]),
            _percent(row["kv_share"]) if row["kv_share"] is not None else str(row["kv_reserved_tokens"]),
            _percent(row["hit_share"]),
            f"{row['tokens_per_s']:.0f}",
        )
    return table


def _clients(rows: list[dict[str, Any]]) -> Table:
    table = _table("client", ">waiting", ">oldest", ">running", ">share", ">owed", "nearest limit")
    for row in rows:
        limit = row["nearest_limit"]
        table.add_row(
            _text(row["client"]),
            str(row["waiting"]),
            seconds(row["oldest_wait_s"]),
            str(row["running"]),
            _percent(row["share"]),
            "-" if row["deficit"] is None else f"{row['deficit']:.0f}",
            "-" if limit is None else f"{limit['remaining']} of {limit['limit']} {limit['of']}",
        )
    return table


def _decisions(rows: list[dict[str, Any]]) -> Table:
    table = _table("last requests", "client", "worker", "reason", ">expected", ">found", ">waited", ">took", "end")
    for row in rows:
        table.add_row(
            _text(row["request_id"]),
            _text(row["client"]),
            _text(row["worker"] or "-"),
            row["reason"] or "-",
            _number(row["matched_tokens"]),
            _number(row["cached_tokens"]),
            seconds(row["waited_s"]),
            seconds(row["age_s"]),
            Text(row["state"], "" if row["state"] == "completed" else "yellow"),
        )
    return table


def _table(*heads: str) -> Table:
    """A table of the full width; a head that begins with > is over numbers."""
    table = Table(expand=True, box=None, header_style="bold dim", pad_edge=False)
    for head in heads:
        table.add_column(
            head.removeprefix(">"),
            justify="right" if head.startswith(">") else "left",
            no_wrap=True,
            overflow="ellipsis",
        )
    return table


def _text(content: str) -> Text:
    """What clients and workers have named: no markup, and nothing that moves the cursor."""
    return Text(printable(content).replace("\n", " "))


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f}%"


def _number(tokens: int | None) -> str:
    return "-" if tokens is None else str(tokens)


@contextmanager
def _keys() -> Iterator[Callable[[float], str | None]]:
    """A function that waits for a key, at most the seconds it is given, and returns the key or None."""
    if not sys.stdin.isatty():

        def none(within_s: float) -> None:
            time.sleep(within_s)

        yield none
        return
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)

    def pressed(within_s: float) -> str | None:
        ready, _, _ = select.select([terminal], [], [], within_s)
        return os.read(terminal, 1).decode(errors="replace") if ready else None

    try:
        tty.setcbreak(terminal)
        yield pressed
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)
