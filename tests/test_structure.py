"""The rooms and what may be carried between them, read from the sources themselves.

policies  may import values of the standard library, numpy, xxhash;
          never workers, router, clocks, sockets, threads, global chance, a web library
workers   the standard library and HTTP libraries; never policies, router
router    policies, workers, web and metrics libraries; never benchmarks, tests
edge      of the router: never control, by no way; what is shared is behind `router/port.py`
control   of the router: never the edge; nor does the port import either

A web framework is imported below workers only by the simulator's HTTP surface, and the simulator's own prefix
cache never by way of the router's tree.
"""

import ast
import itertools
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("policies", "workers", "router")
DOCUMENTS = {"README.md", "ARCHITECTURE.md", "LICENSE", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"}
TOP_LEVEL = {"pyproject.toml", *DOCUMENTS, "router", "workers", "policies", "deploy", "tests", "benchmarks"}
LEFT_BY_TOOLS = {"build", "dist", "site", "__pycache__"}
VAGUE = {"utils", "util", "common", "base", "manager", "service", "helper", "helpers", "handler", "context"}

# fmt: off
POLICIES_MAY = {
    "abc", "array", "bisect", "collections", "copy", "dataclasses", "enum", "functools", "hashlib", "heapq",
    "inspect", "itertools", "json", "math", "operator", "pathlib", "random", "re", "statistics", "string",
    "struct", "types", "typing", "numpy", "xxhash", "policies",
}
# fmt: on
WEB = {"fastapi", "starlette", "uvicorn", "aiohttp", "flask", "tornado", "sanic", "quart"}
WEB_ROOM = "workers/simulator/server.py"
CHANCE = {"Random"}
"""All that policies may take from `random`: a generator of their own, seeded by the caller."""
OTHERS = {"tests", "benchmarks"}


def imports(tree):
    """Every import as (dotted module, name taken from it or None), wherever in the file it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from ((module, alias.name) for alias in node.names)


def uses_of_global_chance(tree):
    """Attributes taken from the module `random` itself, such as `random.random`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "random":
            yield node.attr


def forbidden(path, room, package):
    if room == "policies":
        return package not in POLICIES_MAY
    if room == "workers":
        return package in {"policies", "router", *OTHERS} or (package in WEB and path != WEB_ROOM)
    return room == "router" and package in OTHERS


def violations(path, source):
    """What a file imports against the table; `path` is relative to the root."""
    tree, room = ast.parse(source), path.split("/", maxsplit=1)[0]
    found = []
    for module, name in imports(tree):
        package = module.split(".", maxsplit=1)[0]
        if module.startswith("."):
            found.append(f"{path}: a relative import hides where it leads: {module}")
        elif room == "policies" and package == "random" and name is not None and name not in CHANCE:
            found.append(f"{path} takes global chance: {name}")
        elif forbidden(path, room, package):
            found.append(f"{path} imports {module}")
    if room == "policies":
        found += [f"{path} uses random.{name}" for name in uses_of_global_chance(tree) if name not in CHANCE]
    return found


def sources(*rooms):
    files = itertools.chain.from_iterable((ROOT / room).rglob("*.py") for room in rooms)
    return sorted(path.relative_to(ROOT).as_posix() for path in files if "__pycache__" not in path.parts)


def texts():
    """Everything that belongs to the project and is text; not what tools leave behind."""
    for room in (*PACKAGES, "tests", "benchmarks", "deploy"):
        yield from (
            path for path in (ROOT / room).rglob("*") if path.is_file() and "__pycache__" not in path.parts
        )
    yield from (ROOT / name for name in ("pyproject.toml", *sorted(DOCUMENTS)) if (ROOT / name).exists())


def remarks(text):
    """Marks of unfinished work, and paths of the machine on which a text was written."""
    unfinished = "|".join(("TO" + "DO", "FIX" + "ME", "X" * 3))
    return re.findall(rf"\b(?:{unfinished})\b|(?<![\w.:])/{'work'}\b", text)


def modules_of(path):
    return set(Path(path).with_suffix("").parts)


# -- the checker itself


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("policies/scheduler/scheduler.py", "import asyncio"),
        ("policies/scheduler/scheduler.py", "from time import monotonic"),
        ("policies/scheduler/scheduler.py", "import threading, math"),
        ("policies/scheduler/scheduler.py", "from workers.worker import Worker"),
        ("policies/placement/x.py", "def choose():\n    import router.gateway"),
        ("policies/placement/x.py", "import random\n\ndef choose():\n    return random.choice([1])"),
        ("policies/placement/x.py", "from random import choice"),
        ("policies/queue/x.py", "import os.path"),
        ("policies/queue/x.py", "from .fcfs import Fcfs"),
        ("policies/queue/x.py", "import fastapi"),
        ("workers/fleet/fleet.py", "from policies.model import Stage"),
        ("workers/fleet/fleet.py", "import router"),
        ("workers/fleet/fleet.py", "import uvicorn"),
        ("workers/simulator/engine.py", "from policies.prefixes.radix_tree import PrefixTree"),
        ("workers/simulator/engine.py", "from fastapi import FastAPI"),
        ("router/edge/routes.py", "from tests.router import fakes"),
        ("router/edge/routes.py", "import benchmarks.micro"),
    ],
)
def test_the_checker_finds(path, source):
    assert violations(path, source)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("policies/scheduler/scheduler.py", "import heapq\nfrom policies.model import Ticket"),
        ("policies/placement/x.py", "from random import Random"),
        ("policies/placement/x.py", "import random\n\ndef choose(rng: random.Random):\n    return rng.random()"),
        ("workers/http/upstream.py", "import asyncio, ssl\nimport httptools"),
        ("workers/simulator/server.py", "import uvicorn"),
        (
            "router/edge/routes.py",
            "import asyncio\nfrom policies.model import Stage\nfrom workers.worker import Worker",
        ),
        ("tests/router/test_x.py", "import router.gateway\nimport policies.model\nimport time"),
    ],
)
def test_the_checker_passes(path, source):
    assert violations(path, source) == []


def test_the_checker_finds_remarks_and_paths_of_a_machine():
    assert len(remarks("# TO" + "DO: later\n# FIX" + "ME\npath = '/wo" + "rk/main'")) == 3
    assert remarks("https://example.org/work/in/progress, networks, TODOS, a/work/b") == []


# -- the project


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_go_in_the_allowed_directions(package):
    files = sources(package)
    assert files
    broken = [found for path in files for found in violations(path, (ROOT / path).read_text())]
    assert broken == []


def module_of(path):
    parts = list(Path(path).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def reached(start, graph):
    """Modules that are loaded with those of a room, each with the one that imports it."""
    found = {module: None for module in graph if module == start or module.startswith(start + ".")}
    queue = list(found)
    while queue:
        module = queue.pop()
        for other in graph[module]:
            if other not in found:
                found[other] = module
                queue.append(other)
    return found


@cache
def import_graph(*rooms):
    """Every module of these rooms with those among them that it imports."""
    modules = {module_of(path): path for path in sources(*rooms)}
    graph = {}
    for module, path in modules.items():
        named = set()
        for imported, name in imports(ast.parse((ROOT / path).read_text())):
            named |= {imported, f"{imported}.{name}"}
        graph[module] = sorted(named & modules.keys() - {module})
    return graph


@pytest.mark.parametrize(
    ("room", "never"),
    [("router.edge", "router.control"), ("router.control", "router.edge"), ("router.port", "router.edge")],
)
def test_edge_and_control_meet_only_in_the_composition_root(room, never):
    found = reached(room, import_graph("router"))
    assert {module: by for module, by in found.items() if module == never or module.startswith(never + ".")} == {}
    assert len(found) > 0


def test_the_composition_root_is_the_only_one_that_knows_both_halves():
    graph = import_graph("router")
    both = [
        module
        for module, others in graph.items()
        if any(other.startswith("router.edge") for other in others)
        and any(other.startswith("router.control") for other in others)
    ]
    assert both == ["router.app"]


def test_every_file_of_the_router_stands_in_a_room():
    outside = {path.name for path in (ROOT / "router").glob("*.py")}
    assert outside == {"__init__.py", "app.py", "port.py"}


def test_the_top_level_holds_only_its_rooms():
    names = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")}
    assert {name for name in names - TOP_LEVEL - LEFT_BY_TOOLS if not name.endswith(".egg-info")} == set()


def test_tests_are_no_packages():
    assert [path for path in sources("tests") if path.endswith("__init__.py")] == []


def test_no_room_has_a_vague_name():
    assert [path for path in sources(*PACKAGES) if modules_of(path) & VAGUE] == []


def test_every_module_says_what_it_is_for():
    files = sources(*PACKAGES, "benchmarks")
    silent = [path for path in files if (ROOT / path).read_text() and not docstring(path)]
    assert silent == []


def docstring(path):
    return ast.get_docstring(ast.parse((ROOT / path).read_text()))


def test_no_text_has_remarks_of_unfinished_work_or_paths_of_one_machine():
    found = {}
    for path in texts():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if marks := remarks(text):
            found[path.relative_to(ROOT).as_posix()] = marks
    assert found == {}


def test_policies_load_without_any_web_library():
    """What they import in turn: none of it reaches the network or the clock through a back door."""
    program = "import sys, policies.scheduler, policies.catalog; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert loaded.isdisjoint({*WEB, "workers", "router", "asyncio", "socket", "logging", "httpx"})


EXPRESSIONS = {
    "router/edge/api/seam_text.py": "single special tokens of at most 64 characters, which match in one way only",
    "router/edge/api/stream_record.py": "lists of numbers in a worker's event, which match in one way only",
    "router/edge/execution/kv_release.py": "the id that a worker gives a request",
    "router/tokenization/encoder.py": "alternatives of fixed words, searched stretch by stretch",
    "workers/http/request_head.py": "single headers of the gateway's own requests",
}
"""Where a regular expression may run on the way of a request, and on what."""


def test_no_regular_expression_runs_on_a_body():
    """A pattern that goes back costs the square of the body, and the loop stands still during any search."""
    modules = ("re", "regex", "fnmatch", "glob", "sre_compile")
    found = {
        path
        for path in sources("router/edge", "router/tokenization", "workers/http")
        for module, _ in imports(ast.parse((ROOT / path).read_text()))
        if module.split(".", maxsplit=1)[0] in modules
    }
    assert found == set(EXPRESSIONS)
