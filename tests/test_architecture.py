"""ARCHITECTURE.md is true: its files exist, its commands run, its figures follow from the settings.

Its two examples are policies: they pass the linter, and once their line is in the catalog a configuration can name
them and the scheduler runs them.
"""

import dataclasses
import importlib.util
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

from policies import catalog
from policies.fleet.speed import Profile
from policies.model import (
    Dispatch,
    PrefixKey,
    Question,
    Reason,
    RequestView,
    WorkerFacts,
)
from policies.orders import dlpm
from policies.protocol import OrderPolicy, PlacementPolicy
from policies.scheduler.scheduler import Scheduler, SchedulerSettings
from router.commands import policies_text
from router.config.schema import Config
from router.config.sections import Policies

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "ARCHITECTURE.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = [line for name, text in BLOCKS if name == "sh" for line in text.splitlines()]
EXAMPLES = {"first_prefill": "placements", "newest_first": "orders"}
SERVED = frozenset({"base"})


def rooms():
    (text,) = blocks("")
    return text.splitlines()


def blocks(kind):
    return [text for name, text in BLOCKS if name == kind]


def source(name):
    """The example's file."""
    (text,) = [text for text in blocks("python") if f"class {class_name(name)}(" in text]
    return text


def class_name(name):
    return "".join(part.capitalize() for part in name.split("_"))


def entry(name, folder):
    """The example's line in the catalog, made from its file as it stands on the page."""
    path = folder / f"{name}.py"
    path.write_text(source(name))
    spec = importlib.util.spec_from_file_location(f"an_example_{name}", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (line,) = [text for text in blocks("text") if text.startswith(f'_entry("{name}"')]
    (made,) = eval(line, {**vars(catalog), name: module})
    return made


@pytest.fixture
def registered(tmp_path, monkeypatch):
    """The catalog with both examples in it; returns their entries by name."""
    entries = {name: entry(name, tmp_path) for name in EXAMPLES}
    for function, name in (("placement_policies", "first_prefill"), ("queue_policies", "newest_first")):
        known = {**getattr(catalog, function)(), name: entries[name]}
        monkeypatch.setattr(catalog, function, lambda known=known: known)
    yield entries
    for name in EXAMPLES:
        del sys.modules[f"an_example_{name}"]


def asked(name, arrived=0.0, tokens=1000):
    return RequestView(
        id=name,
        client="anna",
        served_name="base",
        key=PrefixKey(name.encode() * tokens, 1, 1.0),
        input_tokens=tokens,
        expected_output_tokens=10,
        arrived=arrived,
    )


def scheduler(order, placement, *workers, slots=1):
    made = Scheduler(order, placement, SchedulerSettings())
    for worker in workers:
        made.worker_joined(WorkerFacts(worker, SERVED, slots=slots), 0.0)
    return made


def started(made, now):
    found = [each for each in made.decisions(now) if isinstance(each, Dispatch)]
    assert made.faults.count == 0
    return {each.request.id: each.place.placement.decode for each in found}


# -- what the page names


def test_every_file_that_is_named_exists():
    named = set(re.findall(r"`((?:router|workers|policies|tests|benchmarks|deploy)/[\w./-]+)`", PAGE))
    named |= {link for link in re.findall(r"\]\(([^)#]+)", PAGE) if "://" not in link}
    assert len(named) > 20
    assert {name for name in named if not (ROOT / name).exists()} == set()


def test_every_file_and_folder_of_the_map_stands_in_its_room():
    room, missing, seen = "", [], 0
    for line in rooms():
        if not line.startswith(" "):
            room = line.split("/")[0]
        elif folder := re.match(r" +([\w]+)/", line):
            seen += 1
            missing += [f"{room}/.../{folder[1]}/"] * (not any(ROOT.joinpath(room).rglob(folder[1])))
        for name in re.findall(r"\b\w+\.py\b", line):
            seen += 1
            missing += [f"{room}/.../{name}"] * (not any(ROOT.joinpath(room).rglob(name)))
    assert missing == []
    assert seen > 30


@pytest.mark.parametrize("package", ["policies", "workers", "router"])
def test_the_map_names_every_room_of_a_package(package):
    lines = rooms()
    begin = next(number for number, line in enumerate(lines) if line.startswith(f"{package}/"))
    end = next(
        (number for number, line in enumerate(lines) if number > begin and not line.startswith(" ")), len(lines)
    )
    text = "\n".join(lines[begin:end])
    folders = {path.parent.name for path in (ROOT / package).glob("*/__init__.py")}
    assert {folder for folder in folders if not re.search(rf"\b{folder}/", text)} == set()


def test_every_setting_that_is_named_exists():
    known = {*Policies.model_fields, *(field.name for field in dataclasses.fields(dlpm.Settings))}
    named = {"hold_ms", "hold_gain", "binding", "overdraft", "arrears", "quantum"}
    assert {name for name in named if not re.search(rf"\b{name}\b", PAGE)} == set()
    assert named <= known


def test_the_bound_in_figures_follows_from_the_default_settings():
    chosen = dlpm.Settings()
    prompt, output, bound = (
        int(figure.replace(",", ""))
        for figure in re.search(
            r"prompts of ([\d,]+) tokens, ([\d,]+) output tokens\s+outstanding .* below ([\d,]+) units", PAGE
        ).groups()
    )
    charged_late = chosen.extend_weight * prompt + chosen.output_weight * output
    assert bound == 2 * (charged_late + chosen.quantum + chosen.overdraft)


# -- its commands


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("fairlead ")])
def test_a_command_of_fairlead_runs(line):
    words = line.split()
    fairlead = Path(sys.executable).with_name(words[0])
    done = subprocess.run(
        [fairlead, *words[1:]], capture_output=True, text=True, check=False, timeout=100, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("pytest ")])
def test_a_command_of_pytest_names_tests_of_the_whole_catalog(line):
    for name in line.split()[1:]:
        assert re.search(r"catalog\.(placement|queue)_policies\(\)", (ROOT / name).read_text()), name


def test_there_are_no_other_commands():
    assert COMMANDS
    assert [line for line in COMMANDS if line.split()[0] not in {"fairlead", "pytest"}] == []


# -- its examples


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_passes_the_linter_where_it_is_to_be_saved(name):
    path = f"policies/{EXAMPLES[name]}/{name}.py"
    assert f"`{name}.py` in `policies/{EXAMPLES[name]}/`" in PAGE
    for arguments in (["check"], ["format", "--check"]):
        command = [sys.executable, "-m", "ruff", *arguments, "--no-cache", "--stdin-filename", path, "-"]
        done = subprocess.run(
            command, input=source(name), capture_output=True, text=True, check=False, cwd=ROOT, timeout=60
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_listed_with_its_question_its_source_and_its_settings(name, registered):
    made = registered[name]
    assert inspect.getdoc(inspect.getmodule(made.settings)).startswith(made.question)
    assert made.source
    (page,) = policies_text.pages(name)
    assert [each.name for each in page.settings] == [field.name for field in dataclasses.fields(made.settings)]
    assert all(each.meaning for each in page.settings)


def test_a_configuration_names_the_examples(registered):
    chosen = Config.model_validate(
        {"policies": {"placement": {"name": "first_prefill", "owed": 2}, "queue": "newest_first"}}
    ).policies
    assert chosen.placement.settings == registered["first_prefill"].settings(owed=2.0)
    assert chosen.queue.settings == registered["newest_first"].settings()


def test_the_placement_is_some_twenty_lines():
    code = source("first_prefill").partition("@dataclass")[2]
    lines = [line for line in re.sub(r'""".*?"""', "", code, flags=re.DOTALL).splitlines() if line.strip()]
    assert len(lines) <= 20


def test_the_placement_ranks_every_worker_by_what_it_still_has_to_compute(registered):
    policy = registered["first_prefill"].build()
    assert isinstance(policy, PlacementPolicy)
    made = scheduler(catalog.queue_policies()["fcfs"].build(), policy, "a", "b", "c")
    speed, request = Profile(), asked("r")
    ranking = policy.rank(Question(request, {"b": 900}, made.able(request), 0.0))
    assert [(worker.id, reason) for worker, _, reason in ranking] == [
        ("b", Reason.HIT),
        ("a", Reason.SPILL),
        ("c", Reason.SPILL),
    ]
    assert ranking[0][1] == speed.prefill_s(100, 900)
    assert ranking[1][1] == speed.prefill_s(1000, 0)


def test_the_placement_runs_in_the_scheduler(registered):
    made = scheduler(
        catalog.queue_policies()["fcfs"].build(), registered["first_prefill"].build(), "a", "b", slots=4
    )
    made.submit(asked("one"), 0.0)
    made.submit(asked("two"), 0.0)
    assert started(made, 0.0) == {"one": "a", "two": "b"}, "the prefill in flight counts"


def test_the_order_starts_the_newest_request(registered):
    order = registered["newest_first"].build()
    assert isinstance(order, OrderPolicy)
    made = scheduler(order, catalog.placement_policies()["least_loaded"].build(), "a")
    first = made.submit(asked("running"), 0.0)
    assert started(made, 0.0) == {"running": "a"}
    for arrived, name in enumerate(("old", "middle", "new")):
        made.submit(asked(name, 1.0 + arrived), 1.0 + arrived)
    assert started(made, 4.0) == {}
    made.cancel(first, 5.0)
    assert started(made, 5.0) == {"new": "a"}


def test_the_order_starts_a_request_that_has_waited_too_long_before_newer_ones(registered):
    order = registered["newest_first"].build()
    made = scheduler(order, catalog.placement_policies()["least_loaded"].build(), "a")
    first = made.submit(asked("running"), 0.0)
    assert started(made, 0.0) == {"running": "a"}
    made.submit(asked("old", 1.0), 1.0)
    made.submit(asked("new", 11.0), 11.0)
    made.cancel(first, 12.0)
    assert started(made, 12.0) == {"old": "a"}
