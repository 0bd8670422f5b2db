"""`fairlead workers`, `drain` and `undrain`: the fleet by command."""

# ruff: noqa: PLC0415, FBT002  # httpx is imported when the command runs; typer's options have boolean defaults
import json
from typing import Annotated

import typer

from router.commands.operator_options import DEFAULT_URL, AsJson, KeyFile, Url

EXAMPLES = """\b
Examples:
  fairlead workers                             state and cause, load, cache
  fairlead drain http://10.0.0.7:8000          before maintenance: it finishes what it has
  fairlead undrain http://10.0.0.7:8000
"""
Worker = Annotated[str, typer.Argument(metavar="WORKER_URL", help="As `fairlead workers` shows it.")]


def register(cli: typer.Typer) -> None:
    """Add the commands to the command line."""
    cli.command("workers", epilog=EXAMPLES)(workers)
    cli.command("drain")(drain)
    cli.command("undrain")(undrain)


def workers(url: Url = DEFAULT_URL, key_file: KeyFile = None, as_json: AsJson = False) -> None:
    """List the workers: state and cause, load, cache.

    Those that get no requests come first.
    """
    from router.commands.admin_api import AdminApi
    from router.commands.explain_text import printable, table

    told = AdminApi(url, key_file).get("/overview")["workers"]
    if as_json:
        typer.echo(json.dumps({"workers": told}, indent=2))
        return
    rows = [
        (
            row["worker"],
            row["state"],
            f"{row['batch']} of {row['slots']}" if row["slots"] else str(row["batch"]),
            str(row["prefill_owed_tokens"]),
            "-" if row["kv_share"] is None else f"{row['kv_share']:.0%}",
            "-" if row["hit_share"] is None else f"{row['hit_share']:.0%}",
            f"{row['tokens_per_s']:.0f}",
            row["why"] or "-",
        )
        for row in sorted(told, key=lambda row: (row["state"] == "up", row["worker"]))
    ]
    head = ("worker", "state", "batch", "prefill owed", "KV", "hits", "tokens/s", "why")
    typer.echo(printable("\n".join(table(head, rows))))


def drain(worker: Worker, url: Url = DEFAULT_URL, key_file: KeyFile = None) -> None:
    """Let a worker finish what it has; it gets nothing new."""
    from router.commands.admin_api import AdminApi

    AdminApi(url, key_file).call("POST", "/workers/drain", params={"url": worker})
    typer.echo(f"{worker} drains; `fairlead workers` shows when its batch is empty")


def undrain(worker: Worker, url: Url = DEFAULT_URL, key_file: KeyFile = None) -> None:
    """Use a drained worker again."""
    from router.commands.admin_api import AdminApi

    AdminApi(url, key_file).call("POST", "/workers/undrain", params={"url": worker})
    typer.echo(f"{worker} is used again")
