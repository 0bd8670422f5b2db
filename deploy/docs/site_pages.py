"""What the site has beside `pages/`: pages that stand elsewhere in the repository, and pages made from the code.

A hook of MkDocs. Pages are written with links that work in the repository; here they are made to work in the site:
a link to another page leads to its place there, pictures are copied, a path that is no page is shown as a path.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from router.commands import policies_text
from router.config import reload
from router.config.policy_choice import Choice
from router.config.schema import Config

ROOT = Path(__file__).resolve().parents[2]
PAGES = Path("deploy/docs/pages")
ELSEWHERE = {
    "index.md": "README.md",
    "architecture.md": "ARCHITECTURE.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "vulnerabilities.md": "SECURITY.md",
    "launching.md": "deploy/README.md",
    "runbook.md": "deploy/runbook.md",
    "security.md": "deploy/security.md",
    "examples.md": "deploy/examples/README.md",
    "own-policy.md": "deploy/examples/policy/README.md",
    "benchmarks.md": "benchmarks/README.md",
    "benchmarks-fleet.md": "benchmarks/fleet/README.md",
    "benchmarks-dataplane.md": "benchmarks/dataplane/README.md",
    "benchmarks-papers.md": "benchmarks/papers/README.md",
    "benchmarks-gpu.md": "benchmarks/gpu/README.md",
    "benchmarks-log.md": "benchmarks/LOG.md",
}
"""Pages of the site and where they stand in the repository."""
_LINK = re.compile(r"(!?)\[([^\[\]]*)\]\(([^()\s]+)\)")
_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_FROM_ELSEWHERE = re.compile(r'<script src="https://[^"]*"></script>')
_PICTURES = (".png", ".svg")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what does not stand in `pages/`. Called once for a build."""
    for uri, path in ELSEWHERE.items():
        files.append(File.generated(config, uri, content=(ROOT / path).read_text("utf-8")))
    for path in sorted((*ROOT.glob("benchmarks/**/*.png"), *ROOT.glob("deploy/pictures/*.png"))):
        uri = path.relative_to(ROOT).as_posix()
        files.append(File.generated(config, uri, content=path.read_bytes()))
    files.append(File.generated(config, "configuration.md", content=configuration()))
    files.append(File.generated(config, "policy-reference.md", content=policies()))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Make the links of one page work in the site."""
    uri = page.file.src_uri
    return for_site(markdown, ELSEWHERE.get(uri, (PAGES / uri).as_posix()))


def on_post_page(output: str, **_: Any) -> str:
    """Take out what would be loaded from elsewhere: the theme's shim for searching from `file://`."""
    return _FROM_ELSEWHERE.sub("", output)


def on_post_template(output: str, **_: Any) -> str:
    """The same for pages that are no page of ours, such as 404.html."""
    return _FROM_ELSEWHERE.sub("", output)


def for_site(markdown: str, path: str) -> str:
    """The text of the page that stands at `path` of the repository, with links that work in the site."""
    pages = {source: uri for uri, source in ELSEWHERE.items()}
    pages |= {(PAGES / each.name).as_posix(): each.name for each in (ROOT / PAGES).glob("*.md")}

    def link(found: re.Match[str]) -> str:
        picture, text, target = found.groups()
        file, hash_, anchor = target.partition("#")
        if not file or "://" in file or file in {"configuration.md", "policy-reference.md"}:
            return found[0]
        named = os.path.normpath(Path(path).parent / file)
        if named in pages:
            return f"[{text}]({pages[named]}{hash_}{anchor})"
        if named.endswith(_PICTURES):
            return f"{picture}[{text}]({named})"
        shown = text.strip("`")
        return f"`{named}`" if named.endswith(shown) else f"{text} (`{named}`)"

    parts, last = [], 0
    for fence in _FENCE.finditer(markdown):
        parts += [_LINK.sub(link, markdown[last : fence.start()]), fence[0]]
        last = fence.end()
    return "".join([*parts, _LINK.sub(link, markdown[last:])])


# -- the configuration, from its schema

_CONFIGURATION = """# Configuration

Made from the schema that checks a configuration. A file is YAML; every setting can come from the environment, too:
`FAIRLEAD_` and the path with two underscores for each dot (`FAIRLEAD_LISTEN__PORT=9000`), lists and mappings as
JSON. The command line wins over the environment, the environment over the file. `fairlead print-config --defaults`
prints the same as a file, `fairlead check-config FILE` says what is wrong in one.

*SIGHUP* says from when on a change holds when the running gateway is told to read its configuration again; where
nothing is said, a change needs a restart."""


def configuration() -> str:
    """Every setting: its default, what it means, and whether SIGHUP changes it."""
    text = [_CONFIGURATION]
    alone: list[str] = []
    for name, info in Config.model_fields.items():
        section = _section(info.annotation)
        if section is None:
            alone += _rows(Config, "", only=name)
            continue
        table = "\n".join(_table(_rows(section, f"{name}.")))
        text += [f"## {name}", str(info.description), table]
        text += [_policies_note()] if name == "policies" else []
    text += ["## Settings without a section", "\n".join(_table(alone))]
    for name in ("workers", "clients"):
        [item] = [each for each in get_args(Config.model_fields[name].annotation) if _section(each) is not None]
        text += [f"## An item of {name}", "\n".join(_table(_rows(item, f"{name}[].", live=False)))]
    return "\n\n".join(text) + "\n"


def _policies_note() -> str:
    return (
        "Settings of a policy stand beside its name: `placement: {name: cache_aware, match_ratio: 0.5}`. "
        "They are in the [policy reference](policy-reference.md)."
    )


def _table(rows: list[str]) -> list[str]:
    return ["| setting | default | what it means | SIGHUP |", "|---|---|---|---|", *rows]


def _rows(model: type[BaseModel], above: str, *, only: str | None = None, live: bool = True) -> list[str]:
    rows = []
    for name, info in model.model_fields.items():
        if only not in {None, name}:
            continue
        section = _section(info.annotation)
        if section is not None:
            rows += _rows(section, f"{above}{name}.", live=live)
            continue
        default = info.get_default(call_default_factory=True) if info.default_factory else info.default
        effect = reload.LIVE.get(above + name) if live else None
        cells = (f"`{above}{name}`", _shown(default), info.description or "", effect.effect if effect else "")
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return rows


def _section(annotation: Any) -> type[BaseModel] | None:
    """The model of a section, also of one that may be left out."""
    if get_origin(annotation) is tuple:
        return None
    for each in (annotation, *get_args(annotation)):
        if isinstance(each, type) and issubclass(each, BaseModel):
            return each
    return None


def _shown(default: Any) -> str:
    if default is PydanticUndefined:
        return "required"
    if isinstance(default, Choice):
        return f"`{default.name}`"
    if default is None:
        return "unset"
    if isinstance(default, tuple | dict | frozenset) and not default:
        return "none"
    value = sorted(default) if isinstance(default, tuple | frozenset) else default
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10_000)
    return f"`{text.removesuffix(chr(10)).removesuffix(chr(10) + '...')}`"


# -- the policies, from the catalog

_POLICIES = """# Policy reference

Made from the policies' own files, like `fairlead policies`. Which one to take: [policies](policies.md)."""


def policies() -> str:
    """Every policy that is built in, as its own file describes it."""
    text = [_POLICIES]
    titles = {"placement": "Placements: where a request runs", "queue": "Orders: which request is next"}
    for kind, title in titles.items():
        text.append(f"## {title}")
        for page in policies_text.pages():
            if page.kind == kind:
                text += _policy(page)
    return "\n\n".join(text) + "\n"


def _policy(page: policies_text.Page) -> Iterator[str]:
    yield f"### {page.name}" + (" (the default)" if page.default else "")
    yield re.sub(r"^( {4,})", "    ", page.description.replace("<", "&lt;"), flags=re.MULTILINE)
    if page.settings:
        rows = ["| setting | default | what it means |", "|---|---|---|"]
        for each in page.settings:
            cells = (f"`{each.name}`", _shown(each.default), each.meaning)
            rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        yield "\n".join(rows)
