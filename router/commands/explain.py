"""`fairlead explain` and `fairlead requests`: why a request waited, or went there; which ones wait."""

# ruff: noqa: PLC0415, FBT002, PLR0917  # httpx is imported when the command runs; typer's options have boolean
# defaults, and its commands are called by keyword
import json
from typing import Annotated, Literal
from urllib.parse import quote

import typer

from router.commands.operator_options import DEFAULT_URL, AsJson, KeyFile, Url

EXPLAIN = """\b
Examples:
  fairlead explain 4bf92f3577b34da6a3ce929d0e0e4736      the X-Request-Id of the answer, or of the log
  fairlead explain my-request --url http://10.0.0.1:8000 --key-file admin.key
  fairlead explain my-request --json | jq '.requests[0].waits'
"""
REQUESTS = """\b
Examples:
  fairlead requests                      what waits, what runs, what ended a moment ago
  fairlead requests --state waiting      the queue
  fairlead requests --client team-a --limit 20
"""


def register(cli: typer.Typer) -> None:
    """Add the commands to the command line."""
    cli.command("explain", epilog=EXPLAIN)(explain)
    cli.command("requests", epilog=REQUESTS)(requests)


def explain(
    request: Annotated[str, typer.Argument(metavar="REQUEST_ID", help="Its X-Request-Id.")],
    url: Url = DEFAULT_URL,
    key_file: KeyFile = None,
    as_json: AsJson = False,
) -> None:
    """Say why a request waited, or went there.

    When it came, what it waited for, every worker with its cost and why it was not taken, attempts, and the prefix
    that was expected in the cache beside what was found. The gateway remembers the last 1000 requests.
    """
    from router.commands.admin_api import AdminApi
    from router.commands.explain_text import as_text

    told = AdminApi(url, key_file).get(f"/requests/{quote(request, safe='')}")
    typer.echo(json.dumps(told, indent=2) if as_json else as_text(told))


def requests(
    state: Annotated[Literal["waiting", "running", "ended", "all"], typer.Option(help="Which of them.")] = "all",
    client: Annotated[str | None, typer.Option(help="Only this client's.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many at most.")] = 50,
    url: Url = DEFAULT_URL,
    key_file: KeyFile = None,
    as_json: AsJson = False,
) -> None:
    """List requests that wait, run, or ended a moment ago.

    The oldest that wait come first.
    """
    from router.commands.admin_api import AdminApi
    from router.commands.explain_text import as_table

    told = AdminApi(url, key_file).get("/requests", state=state, client=client, limit=limit)
    typer.echo(json.dumps(told, indent=2) if as_json else as_table(told))
