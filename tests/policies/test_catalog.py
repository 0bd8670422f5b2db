"""The catalog: every policy under its own name, with the question it answers, its source and its settings."""

import dataclasses
import inspect

import pytest

from policies import catalog
from policies.protocol import OrderPolicy, PlacementPolicy

PLACEMENTS = catalog.placement_policies()
QUEUES = catalog.queue_policies()
ENTRIES = [*PLACEMENTS.values(), *QUEUES.values()]


def test_the_defaults_are_in_the_catalog():
    assert catalog.DEFAULT_PLACEMENT in PLACEMENTS
    assert catalog.DEFAULT_QUEUE in QUEUES


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_a_policy_opens_with_the_question_it_answers_and_names_its_source(entry):
    text = inspect.getdoc(inspect.getmodule(entry.settings))
    assert "?" in text.splitlines()[0]
    assert entry.question.endswith("?")
    assert len(entry.question) > 5
    assert entry.question in " ".join(text.split())
    assert entry.source


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_settings_are_a_frozen_dataclass_with_defaults(entry):
    made = entry.settings()
    policy = entry.build(made)
    assert isinstance(policy, PlacementPolicy if entry.name in PLACEMENTS else OrderPolicy)
    assert dataclasses.is_dataclass(made)
    assert entry.settings.__dataclass_params__.frozen
    assert made == entry.settings()
    for field in dataclasses.fields(made):
        assert field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


@pytest.mark.parametrize("entries", [PLACEMENTS, QUEUES], ids=["placements", "queues"])
def test_every_policy_is_listed_under_its_own_name(entries):
    assert [entry.name for entry in entries.values()] == list(entries)


def test_no_name_stands_for_two_policies():
    assert not PLACEMENTS.keys() & QUEUES.keys()
