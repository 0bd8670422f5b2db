"""What the page on security says is open is what is open."""

import re
from pathlib import Path

import pytest

from router.config.schema import Config
from router.config.sections import ClientConfig
from router.edge import trust

PAGE = (Path(__file__).parents[2] / "deploy" / "security.md").read_text("utf-8")
OPEN = PAGE.partition("## Between")[0]
ROWS = [
    (setting, default)
    for settings, default in re.findall(
        r"^\| (`[a-z].*?) \| (.*?) \|", PAGE.partition("## Between")[0], re.MULTILINE
    )
    for setting in re.findall(r"`([\w.]+)`", settings)
]


@pytest.mark.parametrize(("setting", "default"), ROWS)
def test_a_default_is_what_the_page_says(setting, default):
    value = Config.model_validate({})
    if setting.startswith("clients.") or setting in ClientConfig.model_fields:
        value = ClientConfig(name="a")
        setting = setting.removeprefix("clients.")
    for part in setting.split("."):
        value = getattr(value, part)
    assert shown(value) == default


def shown(value):
    """A default as the page has it."""
    if value is None or value == ():
        return "unset" if value is None else "none"
    return f"`{value:g}`" if isinstance(value, float) else f"`{str(value).lower()}`"


def test_the_page_has_its_rows():
    assert len(ROWS) >= 10


@pytest.mark.parametrize(
    "known", [trust.TO_WORKERS, trust.NOT_FORWARDED, trust.TO_CLIENTS, trust.API_HEADERS, trust.NOT_TO_CLIENTS]
)
def test_what_crosses_the_gateway_is_listed_as_it_is(known):
    assert f"| {trust.names(known)} |" in PAGE
