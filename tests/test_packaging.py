"""What strangers get: a name of its own, a licence, types, and a wheel that works without the checkout."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
import yaml

import router

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKAGES = ("policies", "workers", "router")


def run(*command, **options):
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ".", cwd=ROOT)
    [made] = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A folder with nothing but the wheel's contents, installed."""
    folder = tmp_path_factory.mktemp("installed") / "site-packages"
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, wheel)
    return folder


def fairlead(installed, *arguments, cwd):
    """The installed command, away from the checkout; its dependencies are those of the tests."""
    env = {**os.environ, "PYTHONPATH": str(installed)}
    return run(installed / "bin" / "fairlead", *arguments, cwd=cwd, env=env)


def test_the_version_stands_once_and_the_image_has_it():
    assert PROJECT["dynamic"] == ["version"]
    compose = (ROOT / "deploy" / "compose.yaml").read_text()
    assert re.findall(r"fairlead:(\d[\w.]*)\}", compose) == [router.__version__]
    assert f"## {router.__version__} " in (ROOT / "CHANGELOG.md").read_text()


def test_the_licence_is_apache_2_0():
    assert PROJECT["license"] == "Apache-2.0"
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License\n                           Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_no_text_tells_users_to_install_a_strangers_package():
    """`fairlead` on PyPI is another project."""
    found = {}
    for path in [
        *ROOT.glob("*.md"),
        *(path for room in (*PACKAGES, "deploy") for path in (ROOT / room).rglob("*")),
    ]:
        if path.suffix in {".md", ".py", ".yaml", ".toml"} or path.name == "Dockerfile":
            wrong = re.findall(r"pip install[^\n`]*['\" ]fairlead(?!-router)(?:[\['\" `]|$)", path.read_text())
            if wrong:
                found[path.relative_to(ROOT).as_posix()] = wrong
    assert found == {}


@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ("vendor.github-workflows", ".github/workflows/ci.yml"),
        ("vendor.github-issue-forms", ".github/ISSUE_TEMPLATE/bug.yml"),
        ("vendor.github-issue-forms", ".github/ISSUE_TEMPLATE/feature.yml"),
    ],
)
def test_what_github_reads_passes_its_schema(schema, path):
    run(Path(sys.executable).with_name("check-jsonschema"), "--builtin-schema", schema, path, cwd=ROOT)


def test_the_workflow_runs_every_part_of_ci():
    parts = set(re.search(r"parts=\(([a-z ]+)\)", (ROOT / ".ci" / "run").read_text())[1].split())
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert set(re.findall(r"run: \.ci/run (\w+)", workflow)) == parts


def test_ci_names_a_part_that_does_not_exist():
    done = subprocess.run([ROOT / ".ci" / "run", "nope"], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert 'there is no part "nope"; the parts are lint, vllm and tests' in done.stderr


@pytest.mark.slow
def test_the_wheel_has_a_name_a_licence_types_and_what_compose_needs(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        [metadata] = [name for name in names if name.endswith(".dist-info/METADATA")]
        metadata = message_from_bytes(archive.read(metadata))
        compose = yaml.safe_load(archive.read("router/deploy/compose.yaml"))
    assert (metadata["Name"], metadata["Version"]) == ("fairlead-router", router.__version__)
    assert (metadata["License-Expression"], metadata["License-File"]) == ("Apache-2.0", "LICENSE")
    assert metadata["Requires-Python"] == ">=3.11"
    assert {f"{package}/py.typed" for package in PACKAGES} <= names
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == set(PACKAGES)
    mounted = {
        source.removeprefix("./")
        for service in compose["services"].values()
        for source, _, _ in (volume.partition(":") for volume in service.get("volumes", ()))
        if source.startswith("./")
    }
    mounted |= {config["file"].removeprefix("./") for config in compose["configs"].values()}
    assert mounted
    assert [path for path in mounted if not any(name.startswith(f"router/deploy/{path}") for name in names)] == []


@pytest.mark.slow
def test_the_installed_command_says_its_version_and_lists_its_policies(installed, tmp_path):
    assert fairlead(installed, "--version", cwd=tmp_path) == f"fairlead {router.__version__}\n"
    assert "dlpm" in fairlead(installed, "policies", cwd=tmp_path)


@pytest.mark.slow
def test_compose_works_from_the_wheel_and_builds_the_image_from_what_is_installed(installed, tmp_path):
    text = fairlead(installed, "compose", "--elsewhere", "--gpus", "2", "--model", "M", cwd=tmp_path)
    services = yaml.safe_load(text)["services"]
    build = services["router"]["build"]
    assert build == {
        "context": str(installed),
        "dockerfile": "router/deploy/Dockerfile",
        "args": {"PROJECT": "router/deploy/project"},
    }
    for volume in services["prometheus"]["volumes"]:
        source = volume.partition(":")[0]
        assert not source.startswith("/") or Path(source).exists()
    dockerfile = (installed / build["dockerfile"]).read_text()
    folder = tmp_path / "src"
    folder.mkdir()
    for *sources, target in re.findall(
        r"^COPY (?!--)(\S+) (?:(\S+) )?(?:(\S+) )?(\S+)$", dockerfile, re.MULTILINE
    ):
        for source in filter(None, sources):
            path = installed / source.replace("${PROJECT}", build["args"]["PROJECT"])
            run("cp", "--recursive", path, folder / ("" if target == "./" else target))
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path / "again", folder)
    with zipfile.ZipFile(next((tmp_path / "again").glob("*.whl"))) as archive:
        assert {f"{package}/py.typed" for package in PACKAGES} <= set(archive.namelist())
