"""The JSON Schema accepts every file that the project ships, and refuses what the reader refuses."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml
from typer.testing import CliRunner

from router.commands.cli import cli
from router.config.json_schema import json_schema

DEPLOY = Path(__file__).parents[3] / "deploy"
FILES = sorted(DEPLOY.glob("fairlead*.yaml"))
VALIDATOR = jsonschema.Draft202012Validator(json_schema())


def problems(text):
    return [error.message for error in VALIDATOR.iter_errors(yaml.safe_load(text))]


def test_it_is_a_schema_and_the_command_prints_it():
    jsonschema.Draft202012Validator.check_schema(json_schema())
    result = CliRunner().invoke(cli, ["config", "schema"])
    assert (result.exit_code, json.loads(result.output)) == (0, json_schema())


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_it_accepts_the_files_that_are_shipped(file):
    assert problems(file.read_text()) == []


def test_it_accepts_all_defaults_as_they_are_printed():
    result = CliRunner().invoke(cli, ["print-config", "--defaults"])
    assert problems(result.output) == []


@pytest.mark.parametrize(
    "text",
    [
        "workers: [http://10.0.0.7:8000, {url: http://10.0.0.8:8000, max_num_seqs: 64}]",
        "workers:\nlimits:\n",
        "policies: {placement: lmetric, queue: {name: fcfs}}",
        "policies: {placement: mine.rules:Mine}",
        "health: {kv_events: off}",
        "store: sqlite:///keys.db",
        "log: {sample: 0.01, slow_s: 5}",
    ],
)
def test_it_accepts_what_the_reader_accepts(text):
    assert problems(text) == []


@pytest.mark.parametrize(
    "text",
    [
        "wokers: []",
        "listen: {port: 70000}",
        "clients: [{name: a, tokens_per_day: -1}]",
        "policies: {placement: no_such_rule}",
        "policies: {queue: {name: fcfs, no_such_setting: 1}}",
        "log: {sample: 2}",
        "workers: [{max_num_seqs: 4}]",
    ],
)
def test_it_refuses_what_the_reader_refuses(text):
    assert problems(text)
