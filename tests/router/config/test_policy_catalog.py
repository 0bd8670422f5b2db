"""Policies of other packages: by entry point or as `module:Class`, checked like ours, refused in one sentence."""

import re
import sys
import textwrap

import pytest
from typer.testing import CliRunner

from policies import catalog
from policies.model import WorkerFacts
from router.commands import policies_text
from router.commands.cli import cli
from router.config import policy_catalog
from router.config.policy_catalog import NoSuchPolicy, find
from router.config.render import as_yaml
from router.config.schema import Config
from router.config.yaml_lines import ConfigError
from router.control.scheduler_factory import make_scheduler
from router.lab.setup import SetupError, make_setup

RULES = '''
"""Which worker comes first in the alphabet?

Source: a test.
"""

from dataclasses import dataclass

from policies.orders.fcfs import Fcfs
from policies.placements.kit.ranking import in_order
from policies.model import Reason
from policies.protocol import OrderPolicy, PlacementPolicy


@dataclass(frozen=True)
class Settings:
    backwards: bool = False
    """From the last one on."""


class Alphabet(PlacementPolicy):
    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def rank(self, question):
        workers = sorted(question.workers, key=lambda worker: worker.id, reverse=self.settings.backwards)
        return in_order(workers, Reason.TURN)


class Plain(PlacementPolicy):
    def rank(self, question):
        return in_order(list(question.workers), Reason.TURN)


class Knowing(Alphabet):
    wants_pairs = True

    def __init__(self, settings: Settings, knowledge) -> None:
        self.settings, self.knowledge = settings, knowledge


class Queue(Fcfs):
    pass


class Half(OrderPolicy):
    def push(self, request, *, again=False): ...


class Untyped(Plain):
    def __init__(self, settings):
        pass


class ManyThings(Plain):
    def __init__(self, settings: Settings, knowledge, more):
        pass


class ByKeyword(Plain):
    def __init__(self, *, settings: Settings):
        pass


@dataclass
class Loose:
    x: int = 1


class Changing(Plain):
    def __init__(self, settings: Loose):
        pass


@dataclass(frozen=True)
class Bare:
    needed: int


class Needing(Plain):
    def __init__(self, settings: Bare):
        pass


class Undeclared(Plain):
    def __init__(self, settings: "Missing"):
        pass
'''


@pytest.fixture
def rules(tmp_path, monkeypatch):
    """The module with these rules, importable; returns its name."""
    (tmp_path / "rules_of_a_test.py").write_text(RULES)
    (tmp_path / "broken_rules.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    yield "rules_of_a_test"
    sys.modules.pop("rules_of_a_test", None)


@pytest.fixture
def offer(rules, tmp_path, monkeypatch):
    """Install a package that offers entry points: lines by group."""

    def install(package, **groups):
        folder = tmp_path / f"lib-{package}"
        info = folder / f"{package}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        text = "".join(f"[fairlead.{group}]\n{textwrap.dedent(lines)}\n" for group, lines in groups.items())
        (info / "entry_points.txt").write_text(text)
        monkeypatch.syspath_prepend(folder)

    return install


def chosen(**policies):
    return Config.load(None, {}, {"policies": policies})


def refused(kind, name):
    with pytest.raises(NoSuchPolicy) as caught:
        find(kind, name)
    return str(caught.value)


# -- as module:Class


def test_a_class_is_named_where_a_policy_is(rules):
    config = chosen(placement={"name": f"{rules}:Alphabet", "backwards": True}, queue=f"{rules}:Queue")
    assert config.policies.placement.settings.backwards
    scheduler = make_scheduler(config)
    scheduler.worker_joined(WorkerFacts("a", frozenset({"m"}), slots=1), 0.0)
    assert scheduler.faults.count == 0


def test_a_file_a_variable_and_check_config_take_it(rules, tmp_path):
    file = tmp_path / "fairlead.yaml"
    file.write_text(f"workers: [http://127.0.0.1:1]\npolicies: {{placement: '{rules}:Alphabet'}}\n")
    assert Config.load(file, {}).policies.placement.name == f"{rules}:Alphabet"
    assert (
        Config.load(None, {"FAIRLEAD_POLICIES__QUEUE": f"{rules}:Queue"}).policies.queue.name == f"{rules}:Queue"
    )
    assert CliRunner().invoke(cli, ["check-config", str(file)]).exit_code == 0
    file.write_text(f"workers: [http://127.0.0.1:1]\npolicies:\n  placement: '{rules}:Alphabe'\n")
    answer = CliRunner().invoke(cli, ["check-config", str(file)])
    assert answer.exit_code != 0
    assert "did you mean `Alphabet`?" in answer.output
    assert "fairlead.yaml:3" in answer.output


def test_its_settings_are_checked_like_ours(rules):
    with pytest.raises(ConfigError, match=r"placement\.backward: not a known key; did you mean `backwards`"):
        chosen(placement={"name": f"{rules}:Alphabet", "backward": True})
    with pytest.raises(ConfigError, match=r"placement\.backwards: "):
        chosen(placement={"name": f"{rules}:Alphabet", "backwards": "often"})


def test_what_is_printed_is_a_configuration_again(rules, tmp_path):
    text = as_yaml(chosen(placement={"name": f"{rules}:Alphabet", "backwards": True}))
    (tmp_path / "again.yaml").write_text(text)
    assert Config.load(tmp_path / "again.yaml", {}).policies.placement.settings.backwards


def test_the_lab_takes_it_with_its_settings(rules):
    setup = make_setup(placement=f"{rules}:Alphabet", settings={"placement.backwards": True})
    assert setup.config.policies.placement.settings.backwards
    with pytest.raises(SetupError, match="did you mean `Alphabet`"):
        make_setup(placement=f"{rules}:Alphabets")


def test_it_explains_itself(rules):
    [page] = policies_text.pages(f"{rules}:Alphabet")
    assert (page.question, page.source) == ("Which worker comes first in the alphabet?", "a test.")
    assert [(each.name, each.meaning) for each in page.settings] == [("backwards", "From the last one on.")]


@pytest.mark.parametrize(("name", "knows"), [("Alphabet", False), ("Plain", False), ("Knowing", True)])
def test_a_class_takes_nothing_its_settings_or_knowledge_too(rules, name, knows):
    entry = find("placement", f"{rules}:{name}")
    assert hasattr(entry.build(), "knowledge") == knows
    assert entry.wants_pairs == knows


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("placement", "no.such.module:X", "No module named 'no'; install its package beside fairlead"),
        ("placement", "broken_rules:X", "broken_rules raises ZeroDivisionError: division by zero"),
        ("placement", "RULES:Alphabt", "there is no Alphabt in rules_of_a_test; did you mean `Alphabet`?"),
        ("placement", "RULES:zzz", "its PlacementPolicy classes: Alphabet, Plain, Knowing, "),
        ("placement", "RULES:Queue", "is of the other kind, OrderPolicy: name it under `queue`"),
        ("queue", "RULES:Plain", "is of the other kind, PlacementPolicy: name it under `placement`"),
        ("placement", "RULES:Settings", "should extend policies.protocol.PlacementPolicy"),
        ("queue", "RULES:Half", "it has to define __len__, candidates, remove, waiting"),
        ("placement", "RULES:Untyped", "annotate `settings` with a frozen dataclass"),
        ("placement", "RULES:ManyThings", "takes 3 arguments: its __init__ should take (self), (self, settings"),
        ("placement", "RULES:ByKeyword", "not by position"),
        ("placement", "RULES:Changing", "declare Loose with @dataclass(frozen=True)"),
        ("placement", "RULES:Needing", "give Bare.needed one"),
        ("placement", "RULES:Undeclared", "name 'Missing' is not defined"),
        ("placement", "a b:C", "should be `module:Class`, such as `my_package.roomiest:Roomiest`"),
        ("placement", "rules_of_a_test:", "should be `module:Class`"),
    ],
)
def test_what_is_no_policy_is_refused_in_one_sentence(rules, kind, name, message):
    name = name.replace("RULES", rules)
    text = refused(kind, name)
    assert message in text
    assert f"`{name}`" in text
    assert "\n" not in text


# -- by entry point


def test_a_package_offers_policies_by_name(offer, rules):
    offer("one", placements=f"alphabet = {rules}:Alphabet", orders=f"waiting = {rules}:Queue")
    config = chosen(placement="alphabet", queue="waiting")
    assert (config.policies.placement.name, config.policies.queue.name) == ("alphabet", "waiting")
    assert make_setup(placement="alphabet", queue="waiting").placement == "alphabet"
    assert policy_catalog.names("placement") == [*catalog.placement_policies(), "alphabet"]
    shown = CliRunner().invoke(cli, ["policies", "alphabet"])
    assert "Which worker comes first in the alphabet?" in shown.output
    assert "name: alphabet" in shown.output
    with pytest.raises(ConfigError, match="did you mean `alphabet`"):
        chosen(placement="alphabets")


def test_nothing_of_a_package_is_imported_before_it_is_named(offer, rules):
    offer("one", placements=f"alphabet = {rules}:Alphabet")
    chosen(placement="least_loaded")
    assert policy_catalog.names("placement")[-1] == "alphabet"
    assert rules not in sys.modules


def test_a_name_that_two_packages_offer_is_refused_with_both(offer, rules):
    offer("one", placements=f"alphabet = {rules}:Alphabet")
    offer("two", placements=f"alphabet = {rules}:Plain")
    assert re.search(
        rf"several packages have a placement policy `alphabet`: one \({rules}:Alphabet\) and two .*module:Class",
        refused("placement", "alphabet"),
    )


def test_a_package_does_not_replace_a_policy_that_is_built_in(offer, rules):
    offer("one", orders=f"dlpm = {rules}:Queue")
    assert find("queue", "dlpm").settings is catalog.queue_policies()["dlpm"].settings
    shown = CliRunner().invoke(cli, ["policies"])
    assert shown.exit_code == 0
    assert "note: one offers a queue policy `dlpm`, the name of one that is built in" in shown.stderr
    assert f"it can be used as `{rules}:Queue`" in shown.stderr


def test_a_broken_package_spoils_neither_the_list_nor_the_others(offer, rules):
    offer("one", placements=f"alphabet = {rules}:Alphabet\nbroken = broken_rules:X")
    shown = CliRunner().invoke(cli, ["policies"])
    assert shown.exit_code == 0
    assert "alphabet" in shown.stdout
    assert "note: entry point `broken` of one: `broken_rules:X` cannot be imported" in shown.stderr
    assert "entry point `broken` of one" in refused("placement", "broken")
