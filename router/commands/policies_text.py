"""Which policies there are: `fairlead policies`.

Everything is read from the policies' own files: the question and the source from the docstring that a file opens
with, what a setting means from the text under its field.
"""

import ast
import dataclasses
import difflib
import inspect
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import orjson
import yaml
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from router.config import policy_catalog
from router.config.policy_catalog import Entry, Kind, NoSuchPolicy

_WIDTH = 140
_KINDS: Mapping[Kind, str] = {
    "placement": "Placement: where a request runs",
    "queue": "Queue: which request is next",
}


@dataclass(frozen=True, slots=True)
class Setting:
    """One field of a policy's settings."""

    name: str
    type: str
    """As it is declared."""
    default: Any
    meaning: str


@dataclass(frozen=True, slots=True)
class Page:
    """One policy, as it describes itself."""

    kind: str
    name: str
    default: bool
    """It is used where a configuration names none."""
    question: str
    source: str
    settings: tuple[Setting, ...]
    description: str
    """The docstring of its file."""


def pages(name: str | None = None) -> list[Page]:
    """Every policy, or those of this name, or the class that is named as `module:Class`."""
    found: list[Page] = []
    for kind in _KINDS:
        if name is None:
            entries, _ = policy_catalog.everything(kind)
            found += [_page(kind, entry) for entry in entries.values()]
        else:
            with suppress(NoSuchPolicy):
                found.append(_page(kind, policy_catalog.find(kind, name)))
    return found


def problems() -> list[str]:
    """A sentence for each policy that another package offers and that cannot be used."""
    return [problem for kind in _KINDS for problem in policy_catalog.everything(kind)[1]]


def unknown(name: str) -> str:
    """What to say of a name that no policy has, or of a class that is none."""
    causes = []
    for kind in _KINDS:
        try:
            policy_catalog.find(kind, name)
        except NoSuchPolicy as error:
            causes.append(str(error))
    if ":" in name or any(not cause.startswith("there is no") for cause in causes):
        # Of the two kinds, the one that says more than that it is of the other.
        return min(causes, key=lambda cause: ("name it under" in cause, cause.startswith("there is no")))
    known = list(dict.fromkeys(page.name for page in pages()))
    close = difflib.get_close_matches(name, known, n=1)
    meant = f"did you mean `{close[0]}`?" if close else f"known are {', '.join(known)}"
    return f"there is no policy `{name}`; {meant}"


def as_json(found: Sequence[Page]) -> str:
    """For machines: a list of objects with the fields of `Page`."""
    options = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE
    return orjson.dumps([dataclasses.asdict(page) for page in found], option=options).decode()


def print_all(found: Sequence[Page]) -> None:
    """A table for each kind: the question of each policy, its source, its settings."""
    console = _console()
    for kind, title in _KINDS.items():
        table = Table("", title, box=SIMPLE_HEAD, pad_edge=False, show_lines=True)
        for page in found:
            if page.kind == kind:
                table.add_row(_label(page), _summary(page))
        console.print(table)
    console.print("`fairlead policies NAME` shows one in full.", highlight=False)


def print_in_full(page: Page) -> None:
    """One policy: what its file says, its settings, and how a configuration names it."""
    console = _console()
    console.print(Text(f"{page.name}, a {page.kind} policy{' (default)' if page.default else ''}", style="bold"))
    console.print()
    console.print(Text(page.description))
    console.print()
    if page.settings:
        console.print(_settings(page))
        console.print()
    console.print("In a configuration, with its defaults:")
    given = {"name": page.name} | {setting.name: setting.default for setting in page.settings}
    text = yaml.safe_dump({"policies": {page.kind: given}}, sort_keys=False)
    console.print(Text(textwrap.indent(text, "  ")))


def _page(kind: Kind, entry: Entry) -> Page:
    default = entry.name == policy_catalog.default(kind)
    settings = settings_of(entry.settings)
    return Page(kind, entry.name, default, entry.question, entry.source, settings, entry.description)


def settings_of(settings: type[Any]) -> tuple[Setting, ...]:
    """The fields of a settings dataclass with their types, defaults and meanings."""
    texts = _field_texts(settings)
    made = settings()
    return tuple(
        Setting(field.name, texts[field.name][0], getattr(made, field.name), texts[field.name][1])
        for field in dataclasses.fields(settings)
    )


def _field_texts(settings: type[Any]) -> dict[str, tuple[str, str]]:
    """Field -> (its type, the text under it), from the source of the class."""
    texts: dict[str, tuple[str, str]] = {}
    last = ""
    for statement in _statements(settings):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            last = statement.target.id
            texts[last] = ast.unparse(statement.annotation), ""
        elif last and isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            texts[last] = texts[last][0], " ".join(str(statement.value.value).split())
            last = ""
    return texts


def _statements(settings: type[Any]) -> Iterator[ast.stmt]:
    """The bodies of a dataclass and of those it inherits from, these first."""
    for declared in reversed(settings.__mro__):
        if dataclasses.is_dataclass(declared):
            (body,) = ast.parse(textwrap.dedent(inspect.getsource(declared))).body
            assert isinstance(body, ast.ClassDef)  # noqa: S101 - the source of a class is one
            yield from body.body


# -- for people


def _console() -> Console:
    """As wide as the terminal; into a file or a pipe, as wide as the tables."""
    return Console() if sys.stdout.isatty() else Console(width=_WIDTH)


def _label(page: Page) -> Text:
    label = Text(page.name, style="bold")
    return label.append("\n(default)", style="not bold") if page.default else label


def _summary(page: Page) -> RenderableType:
    parts: list[RenderableType] = [Text(page.question), Text(f"Source: {page.source}", style="dim")]
    return Group(*parts, _settings(page)) if page.settings else Group(*parts)


def _settings(page: Page) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    for setting in page.settings:
        table.add_row(Text(f"{setting.name}: {_plain(setting.default)}", no_wrap=True), Text(_explained(setting)))
    return table


def _explained(setting: Setting) -> str:
    """The meaning, and where the choice is among words, which there are."""
    words = ast.parse(setting.type, mode="eval").body
    if isinstance(words, ast.Subscript) and ast.unparse(words.value) == "Literal":
        choices = ast.literal_eval(words.slice)
        return f"{setting.meaning} One of {', '.join(choices if isinstance(choices, tuple) else (choices,))}."
    return setting.meaning


def _plain(value: Any) -> str:
    """As a configuration would say it."""
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10_000)
    return text.removesuffix("\n").removesuffix("\n...")
