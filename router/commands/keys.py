"""`fairlead keys`: API keys at run time."""

# ruff: noqa: PLC0415, FBT002, PLR0917  # httpx is imported when the command runs; typer's options have boolean
# defaults, and its commands are called by keyword
import json
import re
from typing import Annotated, Any, NoReturn
from urllib.parse import quote

import typer

from router.commands.operator_options import DEFAULT_URL, AsJson, KeyFile, Url

EXAMPLES = """\b
Examples:
  fairlead keys create alice --team search --tokens-per-day 2000000 --expires 90d
  fairlead keys create batch --weight 0.2 --models tiny --shadow
  fairlead keys list
  fairlead keys show alice
  fairlead keys rotate alice --keep-old 1h
  fairlead keys disable alice
"""
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_TIME = re.compile(r"(\d+(?:\.\d+)?)([smhdw])")

commands = typer.Typer(
    help="API keys at run time: create, list, rotate, disable.", no_args_is_help=True, epilog=EXAMPLES
)
Name = Annotated[str, typer.Argument(help="The client's name.")]


@commands.command()
def create(
    name: Name,
    team: Annotated[str | None, typer.Option(help="Keys of the same team share one turn.")] = None,
    weight: Annotated[float, typer.Option(help="Share relative to others of its team.")] = 1.0,
    requests_per_minute: Annotated[float | None, typer.Option(show_default="unlimited")] = None,
    tokens_per_minute: Annotated[float | None, typer.Option(show_default="unlimited")] = None,
    max_concurrent: Annotated[int | None, typer.Option(help="Requests open at once.")] = None,
    tokens_per_day: Annotated[int | None, typer.Option(help="Budget per day of UTC.")] = None,
    tokens_per_month: Annotated[int | None, typer.Option(help="Budget per month of UTC.")] = None,
    models: Annotated[str | None, typer.Option(help="Models it may use, with commas; otherwise all.")] = None,
    expires: Annotated[str | None, typer.Option(help="From now on, such as 12h or 90d; otherwise never.")] = None,
    shadow: Annotated[
        bool, typer.Option("--shadow", help="Count what exceeds the limits, refuse nothing.")
    ] = False,
    url: Url = DEFAULT_URL,
    key_file: KeyFile = None,
    as_json: AsJson = False,
) -> None:
    """Make a key. It is printed this once: keep it."""
    asked = {
        "name": name,
        "team": team,
        "weight": weight,
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "max_concurrent": max_concurrent,
        "tokens_per_day": tokens_per_day,
        "tokens_per_month": tokens_per_month,
        "models": None if models is None else [each.strip() for each in models.split(",")],
        "expires_in_s": None if expires is None else _seconds("--expires", expires),
        "shadow": shadow,
    }
    body = {field: value for field, value in asked.items() if value is not None}
    told = _api(url, key_file).call("POST", "/keys", json=body)
    _say_key(told, as_json=as_json)
    if not as_json and not told["kept"]:
        typer.echo("note: `store` is memory, so the key ends with the gateway's process", err=True)


@commands.command("list")
def list_(url: Url = DEFAULT_URL, key_file: KeyFile = None, as_json: AsJson = False) -> None:
    """List all keys, with what they have used."""
    from router.commands.explain_text import printable, table

    told = _api(url, key_file).get("/keys")
    if as_json:
        typer.echo(json.dumps(told, indent=2))
        return
    head = ("name", "team", "state", "expires", "today", "month", "nearest limit")
    rows = [
        (
            key["name"],
            key["team"] or "-",
            key["state"] + (", shadow" if key["shadow"] else ""),
            (key["expires"] or "-")[:10],
            str(key["day"]["tokens"]),
            str(key["month"]["tokens"]),
            _nearest(key),
        )
        for key in sorted(told["keys"], key=_left)
    ]
    typer.echo(printable("\n".join(table(head, rows))))


@commands.command()
def show(name: Name, url: Url = DEFAULT_URL, key_file: KeyFile = None, as_json: AsJson = False) -> None:
    """Show one key: what it may, what it has used, what is left."""
    _say(_api(url, key_file).get(f"/keys/{quote(name)}"), as_json=as_json)


@commands.command()
def rotate(
    name: Name,
    keep_old: Annotated[str, typer.Option(help="How long the old key stays good, such as 1h.")] = "0s",
    url: Url = DEFAULT_URL,
    key_file: KeyFile = None,
    as_json: AsJson = False,
) -> None:
    """Replace a key by another one, which is printed this once."""
    query = {"name": name, "keep_old_s": _seconds("--keep-old", keep_old)}
    _say_key(_api(url, key_file).call("POST", "/keys/rotate", params=query), as_json=as_json)


@commands.command()
def disable(name: Name, url: Url = DEFAULT_URL, key_file: KeyFile = None, as_json: AsJson = False) -> None:
    """Refuse a key from now on."""
    _say(_api(url, key_file).call("POST", "/keys/disable", params={"name": name}), as_json=as_json)


@commands.command()
def enable(name: Name, url: Url = DEFAULT_URL, key_file: KeyFile = None, as_json: AsJson = False) -> None:
    """Take a disabled key again."""
    _say(_api(url, key_file).call("POST", "/keys/enable", params={"name": name}), as_json=as_json)


def _api(url: str, key_file: Any) -> Any:
    from router.commands.admin_api import AdminApi

    return AdminApi(url, key_file)


def _say_key(told: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(told, indent=2))
        return
    typer.echo(told["key"])  # by itself, so that it can be piped
    typer.echo(f"this is the key of {told['name']}; it is not shown again", err=True)


def _say(told: dict[str, Any], *, as_json: bool) -> None:
    from router.commands.explain_text import printable

    if as_json:
        typer.echo(json.dumps(told, indent=2))
        return
    lines = [f"{told['name']}: {told['state']}"]
    for name in ("team", "weight", "models", "created", "expires", "hash"):
        if told[name] is not None:
            shown = ", ".join(told[name]) if isinstance(told[name], list) else told[name]
            lines.append(f"  {name}: {shown}")
    day, month = told["day"], told["month"]
    lines.append(f"  used on {day['date']}: {day['tokens']} tokens, {day['requests']} requests")
    lines.append(f"  used in {month['month']}: {month['tokens']} tokens")
    lines.append(
        f"  open now: {told['open_requests']} requests, {told['reserved_tokens']} tokens expected of them"
    )
    lines += [
        f"  {row['of']}: {row['remaining']} of {row['limit']} left, all of it in {row['reset_s']:.0f} s"
        for row in told["limits"]
    ]
    if told["shadow"]:
        lines.append(f"  shadow: {told['would_have_refused']} requests would have been refused")
    typer.echo(printable("\n".join(lines)))


def _left(key: dict[str, Any]) -> float:
    """The share that is left of the limit that is nearest."""
    return min((row["remaining"] / row["limit"] for row in key["limits"]), default=2.0)


def _nearest(key: dict[str, Any]) -> str:
    if not key["limits"]:
        return "-"
    row = min(key["limits"], key=lambda row: row["remaining"] / row["limit"])
    return f"{row['remaining']} of {row['limit']} {row['of']} left"


def _seconds(option: str, text: str) -> float:
    found = _TIME.fullmatch(text.strip())
    if found is None:
        _refuse(f"{option} {text}: give a number and s, m, h, d or w, such as 12h")
    return float(found[1]) * _UNITS[found[2]]


def _refuse(message: str) -> NoReturn:
    typer.echo(f"fairlead: {message}", err=True)
    raise typer.Exit(2)
