"""`fairlead top`: the fleet live in a terminal."""

# ruff: noqa: PLC0415, FBT002  # heavy modules are imported when the command runs; typer's options have boolean
# defaults, and its commands are called by keyword
from typing import Annotated, Literal

import typer

from router.commands.operator_options import DEFAULT_URL, KeyFile, Url

EXAMPLES = """\b
Examples:
  fairlead top
  fairlead top --sort kv --url http://10.0.0.1:8000
  fairlead top --once                      one screen, for a script or a ticket
Keys: w, b, p, k, h, t sort the workers by name, batch, prefill owed, KV, hits, tokens; space pauses; q ends.
"""
Sort = Literal["worker", "batch", "prefill", "kv", "hits", "tokens"]


def register(cli: typer.Typer) -> None:
    """Add the command to the command line."""
    cli.command("top", epilog=EXAMPLES)(top)


def top(
    url: Url = DEFAULT_URL,
    key_file: KeyFile = None,
    sort: Annotated[Sort, typer.Option(help="What the workers are sorted by.")] = "worker",
    every: Annotated[float, typer.Option(min=0.5, max=60, help="Seconds between two looks.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Print one screen and end.")] = False,
) -> None:
    """Watch workers, clients and decisions.

    Workers (state and cause, batch, prefill owed, KV, hits, speed), clients (share, queue, oldest wait, service
    owed, nearest limit), and the last requests. Shares, hits and speed are those of the last minute.
    """
    from router.commands.admin_api import AdminApi
    from router.commands.top_screen import follow, print_once

    api = AdminApi(url, key_file)
    if once:
        print_once(api.get("/overview"), sort)
    else:
        follow(lambda: api.get("/overview"), sort, every)
