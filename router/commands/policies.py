"""`fairlead policies`: which policies there are, what they ask, and what can be set."""

# ruff: noqa: PLC0415, FBT002  # heavy modules are imported when the command runs; typer's options have boolean defaults
from typing import Annotated

import typer

EXAMPLES = """\b
Examples:
  fairlead policies                 every policy in a few lines
  fairlead policies dlpm            one in full, with its settings as a configuration has them
  fairlead policies --json | jq -r '.[].name'
"""


def register(cli: typer.Typer) -> None:
    """Add the command to the command line."""
    cli.command("policies", epilog=EXAMPLES)(policies)


def policies(
    name: Annotated[
        str | None,
        typer.Argument(help="One of them, or a class as module:Class, in full.", show_default="all, in short"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None:
    """Explain the policies.

    The question that each placement and queue policy answers, its source, its settings and what they mean.
    """
    from router.commands import policies_text as policies_page

    found = policies_page.pages(name)
    if name is not None and not found:
        typer.echo(f"fairlead: {policies_page.unknown(name)}", err=True)
        raise typer.Exit(2)
    if as_json:
        typer.echo(policies_page.as_json(found), nl=False)
    elif name is None:
        policies_page.print_all(found)
        for problem in policies_page.problems():
            typer.echo(f"note: {problem}", err=True)
    else:
        for page in found:
            policies_page.print_in_full(page)
