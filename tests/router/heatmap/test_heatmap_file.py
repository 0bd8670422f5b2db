"""Heatmaps as files, in the configuration, and in the scheduler that is built from it."""

import json

import pytest

from policies.estimates.heatmap import Heatmap, Layer
from policies.estimates.heatmap_file import HeatmapError
from policies.model import Stage, WorkerFacts
from router.config.schema import Config
from router.config.yaml_lines import ConfigError
from router.control.scheduler_factory import make_scheduler, roles_shortfall
from router.heatmap.file import read_heatmap, shipped_heatmap, write_heatmap

MAP = Heatmap((100, 1000), (0.1, 1.0), (Layer(1.0, ((0.1, -0.2), (0.3, None))),), {"model": "m"})


def test_a_file_that_was_written_is_read_again(tmp_path):
    file = tmp_path / "map.json"
    write_heatmap(file, MAP)
    assert read_heatmap(file).measured == MAP
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\xff\xfe\x00", "not text"),
        (b'{"profile": {}, "conditions": {}}', 'not a heatmap: there is no `"format"'),
        (b"x" * (5 << 20), "larger than 4 MiB"),
        (b"", "not JSON"),
    ],
)
def test_a_broken_or_foreign_file_is_refused_with_its_name_and_the_reason(tmp_path, content, reason):
    file = tmp_path / "map.json"
    file.write_bytes(content)
    with pytest.raises(HeatmapError, match=reason) as refused:
        read_heatmap(file)
    assert str(file) in str(refused.value)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(HeatmapError, match=r"cannot read .*nowhere\.json: No such file"):
        read_heatmap(tmp_path / "nowhere.json")
    with pytest.raises(HeatmapError, match="Is a directory"):
        read_heatmap(tmp_path)


def test_the_map_that_ships_says_what_it_was_made_of():
    measured = shipped_heatmap().measured
    assert measured.conditions["profile"] == "h100-llama-3.1-8b"
    assert {"model", "hardware", "versions", "seed"} <= set(measured.conditions)
    assert not shipped_heatmap().evidence


def test_the_map_that_ships_disaggregates_long_prompts_with_short_answers_and_nothing_short():
    ships = shipped_heatmap()
    assert ships.gain(32_768, 512) > 0.1
    assert ships.gain(8192, 256) > 0
    assert ships.gain(256, 64) < 0
    assert ships.gain(8192, 8192) < -0.1
    assert ships.measured.agreement() > 0.7


def config(**policies):
    return Config.load(None, {}, {"policies": policies})


def test_a_configuration_names_its_map(tmp_path):
    file = tmp_path / "map.json"
    write_heatmap(file, MAP)
    assert config(heatmap=str(file)).policies.heatmap == file
    assert config().policies.heatmap is None
    make_scheduler(config(heatmap=str(file)))
    file.write_text("{}")
    with pytest.raises(ConfigError, match="not a heatmap") as refused:
        config(heatmap=str(file))
    assert "policies.heatmap" in str(refused.value)
    with pytest.raises(ConfigError, match="cannot read"):
        config(heatmap=str(tmp_path / "nowhere.json"))
    with pytest.raises(ConfigError, match="disaggregate"):
        config(disaggregate="sometimes")


def test_what_the_chosen_policies_want_of_roles_is_told_before_the_first_request():
    both = [WorkerFacts("a", frozenset())]
    prefill = WorkerFacts("b", frozenset(), frozenset((Stage.PREFILL,)))
    decode = WorkerFacts("c", frozenset(), frozenset((Stage.DECODE,)))
    assert roles_shortfall(config(placement="round_robin"), both) is None
    assert "has only colocated workers" in roles_shortfall(config(placement="dist_sched"), both)
    assert roles_shortfall(config(placement="dist_sched"), [*both, prefill, decode]) is None
    assert "none for decode" in roles_shortfall(config(placement="fairlead"), [*both, prefill])
    assert "roles are ignored" in roles_shortfall(config(disaggregate="never"), [*both, prefill, decode])


def test_a_written_map_is_json_that_others_can_read(tmp_path):
    file = tmp_path / "map.json"
    write_heatmap(file, MAP)
    document = json.loads(file.read_text())
    assert document["layers"] == [{"rate_per_s": 1.0, "gains": [[0.1, -0.2], [0.3, None]]}]
