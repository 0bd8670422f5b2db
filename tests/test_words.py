"""What users read is in plain English: words that readers stumbled over, each with what to write instead.

Looked at are the pages, help texts, explanations of settings, and every text in the code that is not a docstring:
messages, reasons, titles. Docstrings of policies are printed by `fairlead policies`, so they count as well.
"""

import ast
import re
from pathlib import Path

import pytest
import typer.main

from router.commands import policies_text
from router.commands.cli import cli
from router.config.render import as_yaml
from router.config.schema import Config

ROOT = Path(__file__).parents[1]
UNWANTED = {
    r"nobody|no one": "name the subject: no client, no worker",
    r"somebody|someone|whoever|whosoever": "name the subject: a client, an operator, a process",
    r"whom": "name the subject, and turn the sentence round",
    r"of late|lately": "recently, or the number of seconds",
    r"(?:at most|for|only) so many|so often": "the number, or: this many",
    r"seldom|ever more": "rarely; at longer intervals",
    r"in vain": "without effect, and say which",
    r"foretell|foretold": "predict, predicted",
    r"for ever": "forever, or until when",
    r"thrown? away": "discard, discarded",
    r"as soon as possible|asap": "say when",
    r"simply|obviously|of course": "leave it out",
    r"blazing(?:ly)?|lightning[- ]fast|seamless(?:ly)?|cutting[- ]edge|world[- ]class": "a figure",
    r"utili[sz]e[sd]?": "use",
    r"leverag(?:e|es|ed|ing)": "use",
    r"whitelist|blacklist": "allow-list, deny-list",
}
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted(ROOT.glob("deploy/*.md")),
    *sorted(ROOT.glob("deploy/docs/pages/*.md")),
    *sorted(ROOT.glob("deploy/examples/**/*.md")),
]
RULES = sorted(ROOT.glob("deploy/prometheus/rules/*.yml"))
CODE = sorted(path for room in ("router", "workers", "policies") for path in (ROOT / room).rglob("*.py"))


def found(text):
    """Each unwanted word with what to write instead."""
    return [
        f"{match[0]!r}: {instead}"
        for pattern, instead in UNWANTED.items()
        for match in re.finditer(rf"\b(?:{pattern})\b", text, re.IGNORECASE)
    ]


def strings(path):
    """Texts of a file that are not docstrings, nor the texts under fields."""
    tree = ast.parse(path.read_text("utf-8"))
    bare = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in bare:
            yield node.value


def helps(command, name="fairlead"):
    yield (
        name,
        "\n".join(filter(None, [command.help, command.epilog, *(getattr(p, "help", "") for p in command.params)])),
    )
    for sub, below in getattr(command, "commands", {}).items():
        yield from helps(below, f"{name} {sub}")


def test_the_list_finds_words_whole_and_in_any_case():
    assert len(found("Nobody knows whom. Adjust the justification. For so many reasons, of late.")) == 4
    assert found("A worker that holds the prefix adjusts its load.") == []


@pytest.mark.parametrize("path", [*PAGES, *RULES], ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_page_is_in_plain_words(path):
    assert found(path.read_text("utf-8")) == []


@pytest.mark.parametrize("room", ["router", "workers", "policies"])
def test_messages_are_in_plain_words(room):
    wrong = {}
    for path in CODE:
        if path.is_relative_to(ROOT / room) and (words := found("\n".join(strings(path)))):
            wrong[path.relative_to(ROOT).as_posix()] = words
    assert wrong == {}


@pytest.mark.parametrize(("name", "text"), list(helps(typer.main.get_command(cli))), ids=lambda value: value[:40])
def test_help_is_in_plain_words(name, text):
    assert found(text) == [], name


def test_explanations_of_settings_are_in_plain_words():
    assert found(as_yaml(Config())) == []


@pytest.mark.parametrize("page", policies_text.pages(), ids=lambda page: page.name)
def test_policies_explain_themselves_in_plain_words(page):
    texts = [page.description, *(each.meaning for each in page.settings)]
    assert found("\n".join(texts)) == []
