"""Every page is true: commands and options exist, configurations are accepted, links lead somewhere."""

import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from router.commands.cli import cli
from router.config.policy_choice import Choice
from router.config.reload import settings
from router.config.schema import Config
from router.config.sections import ClientConfig

ROOT = Path(__file__).parents[1]
FAIRLEAD = str(Path(sys.executable).with_name("fairlead"))
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "deploy/*.md", "deploy/docs/pages/*.md", "deploy/examples/**/*.md")
    for path in ROOT.glob(pattern)
)
MADE_FOR_THE_SITE = {"configuration.md", "policy-reference.md"}
PROGRAMS = {
    *("pip", "python3", "openssl", "sudo", "curl", "docker", "export", "."),
    *(".venv/bin/pip", ".venv/bin/pytest", ".venv/bin/fairlead", ".venv/bin/mkdocs", ".venv/bin/pre-commit"),
    *("pytest", "mkdocs", ".ci/run", "vllm", "MODEL=Qwen/Qwen3-14B"),
}
"""Other commands that a page may show; `vllm serve` needs a machine with vLLM."""
REPLAYS = re.compile(r"fairlead (?:simulate|compare) [a-z]+ [^.]*$|fairlead policies(?: \w+)?$")
"""Commands that need nothing but this machine, and are over in seconds."""


@cache
def text(page):
    return (ROOT / page).read_text("utf-8")


def blocks(page, kind):
    return re.findall(rf"^```{kind}\n(.*?)^```$", text(page), re.MULTILINE | re.DOTALL)


def lines(page):
    """Command lines without comments."""
    shown = [line.split("  #")[0].strip() for block in blocks(page, "sh") for line in block.splitlines()]
    return [line for line in shown if line and not line.startswith("#")]


def commands(page):
    """Each single command of the lines, as words without variables in front."""
    for line in lines(page):
        for part in re.split(r" && | \| ", line):
            words = shlex.split(part.split(" > ")[0].split(" < ")[0])
            while re.match(r"[A-Z_]+=", words[0]) and len(words) > 1:
                words.pop(0)
            yield line, words


OURS = [
    (page, line, words)
    for page in PAGES
    for line, words in commands(page)
    if words[0].rsplit("/", 1)[-1] == "fairlead"
]


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_a_known_program(page):
    unknown = [line for line, words in commands(page) if words[0] not in PROGRAMS | {"fairlead"}]
    assert unknown == []


@pytest.mark.parametrize(("page", "line", "words"), OURS, ids=[f"{page}: {line}" for page, line, _ in OURS])
def test_every_option_of_a_command_exists(page, line, words):
    words = words[: words.index("--")] if "--" in words else words
    command = get_command(cli)
    for word in words[1:]:
        if not hasattr(command, "commands") or word.startswith("-"):
            break
        assert word in command.commands, f"there is no command {word}"
        command = command.commands[word]
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    assert {word for word in words if word.startswith("--")} <= known


@pytest.mark.slow
@pytest.mark.parametrize(
    "line", sorted({line for page, line, _ in OURS if REPLAYS.match(line) and "policy/README" not in page})
)
def test_a_command_that_needs_nothing_runs(line):
    done = subprocess.run(
        [FAIRLEAD, *shlex.split(line)[1:]], capture_output=True, text=True, check=False, timeout=110, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr


CONFIGURATIONS = [(page, block) for page in PAGES for block in blocks(page, "yaml")]


@pytest.mark.parametrize(("page", "block"), CONFIGURATIONS, ids=[page for page, _ in CONFIGURATIONS])
def test_every_configuration_is_accepted(page, block, tmp_path, monkeypatch):
    keys = set(yaml.safe_load(block))
    if keys.isdisjoint(Config.model_fields):
        assert keys == {"livenessProbe", "readinessProbe"}, "neither a configuration nor a pod"
        return
    monkeypatch.syspath_prepend(ROOT / "deploy" / "examples" / "policy")
    block = block.replace("name: roomiest", "name: 'fairlead_example.roomiest:Roomiest'")
    block = block.replace("queue: shortest_prompt", "queue: 'fairlead_example.shortest_prompt:ShortestPrompt'")
    file = tmp_path / "fairlead.yaml"
    file.write_text(block.replace("sha256:...", "sha256:" + "0" * 64))
    Config.load(file, env={})


def anchors(page):
    """What a title can be linked as."""
    prose = re.sub(r"^```.*?^```$", "", text(page), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page):
    folder, wrong = (ROOT / page).parent, []
    prose = re.sub(r"^```.*?^```$|`[^`\n]*`", "", text(page), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", prose):
        file, _, anchor = link.partition("#")
        if "://" in file or file in MADE_FOR_THE_SITE:
            continue
        target = (folder / file).resolve() if file else ROOT / page
        if not target.exists() or (anchor and anchor not in anchors(target.relative_to(ROOT).as_posix())):
            wrong.append(link)
    assert wrong == []


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_is_named_exists(page):
    named = set(re.findall(r"`((?:router|workers|policies|tests|benchmarks|deploy)/[\w./-]+)`", text(page)))
    assert {name for name in named if not (ROOT / name).exists()} == set()


def is_setting(name):
    """Whether a configuration may have this key, a policy's own settings under the policy that ships."""
    if name in settings():
        return True
    value = Config.model_validate({})
    if name.startswith("clients."):
        value, name = ClientConfig(name="a"), name.removeprefix("clients.")
    for part in name.split("."):
        value = value.settings if isinstance(value, Choice) else value
        if not hasattr(value, part):
            return False
        value = getattr(value, part)
    return True


@pytest.mark.parametrize("page", PAGES)
def test_every_setting_that_is_named_exists(page):
    sections = "|".join(Config.model_fields)
    named = set(re.findall(rf"`((?:{sections})\.[a-z_.]+)[`:]", text(page)))
    assert {name for name in named if not is_setting(name)} == set()


def test_settings_are_named_at_all():
    named = re.findall(r"`limits\.[a-z_]+[`:]", "".join(map(text, PAGES)))
    assert len(named) > 10
