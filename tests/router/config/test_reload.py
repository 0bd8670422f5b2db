from pathlib import Path

import pytest

from router.config.reload import LIVE, as_markdown, merged, settings
from router.config.schema import Config

README = Path(__file__).parents[3] / "deploy/README.md"
ALL = list(settings())
NEW = object()
"""A value that differs from every other one."""


def whole():
    """A configuration in which every section is there and every setting that may be unset is set."""
    made = Config.load(env={}, overrides={"admin": {"key": "operator"}, "workers": ["http://w:1"]})
    for name in ("listen.tls_certificate", "listen.tls_key", "admin.key_hash"):
        made = changed(made, name, "old")
    return made


def changed(config, name, value):
    """The same with one other value, which need not be a valid one."""
    section, _, rest = name.partition(".")
    if rest:
        value = changed(getattr(config, section), rest, value)
    return config.model_copy(update={section: value})


def value_of(config, name):
    for part in name.split("."):
        config = getattr(config, part)
    return config


def test_every_setting_of_the_schema_is_there():
    assert {name.partition(".")[0] for name in ALL} == set(Config.model_fields)
    assert {"workers", "listen.port", "limits.queue_requests", "policies.queue", "admin.key_hash"} <= set(ALL)
    assert "limits" not in ALL


@pytest.mark.parametrize("name", ALL)
def test_a_setting_that_changes_is_taken_over_or_named(name):
    running = whole()
    in_force, restart = merged(running, changed(running, name, NEW))
    if name in LIVE:
        assert (value_of(in_force, name), restart) == (NEW, [])
    else:
        assert (in_force, restart) == (running, [name])


def test_what_did_not_change_needs_nothing():
    assert merged(whole(), whole())[1] == []


def test_several_changes_are_named_and_taken_over_one_by_one():
    running = whole()
    read = running
    for name in (
        "listen.port",
        "listen.keep_alive_s",
        "policies.queue",
        "limits.attempts",
        "health.probe_every_s",
    ):
        read = changed(read, name, NEW)
    in_force, restart = merged(running, read)
    assert restart == ["listen.port", "policies.queue", "health.probe_every_s"]
    assert (in_force.listen.keep_alive_s, in_force.limits.attempts) == (NEW, NEW)
    assert (in_force.listen.port, in_force.policies) == (running.listen.port, running.policies)


@pytest.mark.parametrize("name", [name for name, live in LIVE.items() if live.if_set])
def test_a_setting_that_is_set_for_the_first_time_or_no_more_needs_a_restart(name):
    set_, unset = whole(), changed(whole(), name, None)
    assert merged(set_, unset) == (set_, [name])
    assert merged(unset, set_) == (unset, [name])


def test_a_section_that_comes_or_goes_is_named_as_a_whole():
    there, gone = whole(), changed(whole(), "admin", None)
    assert merged(there, gone) == (there, ["admin"])
    assert merged(gone, there) == (gone, ["admin"])


def test_what_takes_effect_while_running_exists():
    assert set(LIVE) - set(ALL) == set()


def test_the_operating_guide_has_the_table():
    assert as_markdown() in README.read_text()
