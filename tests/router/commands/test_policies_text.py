"""`fairlead policies`: what is shown is what the policies' own files say."""

import dataclasses
import inspect
import json

import pytest
import yaml
from typer.testing import CliRunner

from policies import catalog
from policies.orders import dlpm
from router.commands import policies_text as policies_page
from router.commands.cli import cli
from router.config.schema import Config

ENTRIES = [
    *(("placement", entry) for entry in catalog.placement_policies().values()),
    *(("queue", entry) for entry in catalog.queue_policies().values()),
]


def invoke(*arguments):
    return CliRunner().invoke(cli, ["policies", *arguments])


def words(text):
    return " ".join(text.split())


@pytest.mark.parametrize(("kind", "entry"), ENTRIES, ids=lambda value: getattr(value, "name", value))
def test_every_policy_is_explained_to_its_last_setting(kind, entry):
    (page,) = [page for page in policies_page.pages(entry.name) if page.kind == kind]
    assert page.question == entry.question
    assert page.source == entry.source
    assert page.source, "its file has no line that begins with `Source:`"
    assert [setting.name for setting in page.settings] == [one.name for one in dataclasses.fields(entry.settings)]
    for setting in page.settings:
        assert setting.default == getattr(entry.settings(), setting.name)
        assert setting.meaning, f"there is no text under {setting.name}"
        assert setting.meaning in words(inspect.getsource(inspect.getmodule(entry.settings)))


@dataclasses.dataclass(frozen=True)
class Inherited:
    first: int = 1
    """Said by the class
    it inherits from."""


@dataclasses.dataclass(frozen=True)
class Own(Inherited):
    """Not the text of a field."""

    second: str = "x"
    third: float | None = None
    """Of the third, not of the second."""


def test_the_text_under_a_field_is_its_meaning():
    found = [(one.name, one.type, one.default, one.meaning) for one in policies_page.settings_of(Own)]
    assert found == [
        ("first", "int", 1, "Said by the class it inherits from."),
        ("second", "str", "x", ""),
        ("third", "float | None", None, "Of the third, not of the second."),
    ]


def test_without_a_name_all_are_shown_with_their_settings_and_the_defaults_are_marked():
    shown = invoke()
    assert shown.exit_code == 0
    text = words(shown.output)
    for _, entry in ENTRIES:
        assert entry.name in text
        assert words(entry.question)[:60] in text
        for field in dataclasses.fields(entry.settings):
            assert f"{field.name}: " in text
    assert text.count("(default)") == 2
    assert f"quantum: {dlpm.Settings().quantum} Service per refill, Q: larger" in text
    assert "One of least, lmetric, fairlead." in text


def test_json_says_all_of_it_to_machines():
    told = json.loads(invoke("--json").output)
    assert [(page["kind"], page["name"]) for page in told] == [(kind, entry.name) for kind, entry in ENTRIES]
    assert [page["name"] for page in told if page["default"]] == [
        catalog.DEFAULT_PLACEMENT,
        catalog.DEFAULT_QUEUE,
    ]
    (page,) = json.loads(invoke("dlpm", "--json").output)
    assert "(arXiv 2501.14312, Algorithm 1)" in page["source"]
    assert page["settings"][0] == {
        "name": "quantum",
        "type": "int",
        "default": dlpm.Settings().quantum,
        "meaning": "Service per refill, Q: larger keeps prefixes together longer, smaller is fairer over short "
        "times.",
    }


@pytest.mark.parametrize(("kind", "entry"), ENTRIES, ids=lambda value: getattr(value, "name", value))
def test_one_in_full_ends_with_a_configuration_that_is_accepted(kind, entry, tmp_path):
    shown = invoke(entry.name)
    assert shown.exit_code == 0
    assert f"{entry.name}, a {kind} policy" in shown.output
    assert words(inspect.getdoc(inspect.getmodule(entry.settings))) in words(shown.output)
    part = shown.output.split(f"{entry.name}, a {kind} policy")[1].split("with its defaults:\n")[1]
    file = tmp_path / "fairlead.yaml"
    file.write_text(part.split("\n\n")[0])
    chosen = getattr(Config.load(file, {}).policies, kind)
    assert (chosen.name, chosen.settings) == (entry.name, entry.settings())
    assert yaml.safe_load(file.read_text())["policies"].keys() == {kind}


@pytest.mark.parametrize(
    ("name", "meant"), [("dlmp", "did you mean `dlpm`?"), ("zzz", "known are round_robin, random, ")]
)
def test_a_name_that_does_not_exist_is_refused_with_status_2(name, meant):
    for arguments in ((name,), (name, "--json")):
        refused = invoke(*arguments)
        assert refused.exit_code == 2
        assert refused.stdout == ""
        assert f"there is no policy `{name}`; {meant}" in refused.stderr


def test_an_unknown_policy_in_a_configuration_is_told_of_this_command(tmp_path):
    file = tmp_path / "fairlead.yaml"
    file.write_text("policies: {queue: dlmp}\n")
    refused = CliRunner().invoke(cli, ["check-config", str(file)])
    assert refused.exit_code == 2
    assert "did you mean `dlpm`? (`fairlead policies` explains them)" in refused.stderr
