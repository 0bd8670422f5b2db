"""Every policy of the catalog runs every workload to its end, under late and under early binding."""

from functools import cache

import pytest

from policies import catalog
from policies.scheduler.matching import Faults
from router.lab.driver import replay
from router.lab.setup import make_setup
from router.lab.workloads.generators import SHAPES
from router.lab.workloads.open_workload import open_workload


@pytest.fixture(autouse=True)
def policies_that_raise_are_caught(monkeypatch):
    """The scheduler goes on when a policy raises; here it is the end."""

    def add(_, fault):
        raise fault

    monkeypatch.setattr(Faults, "add", add)


@cache
def traffic(name):
    return open_workload(f"{name}:rate=200,requests=50", seed=3)


@pytest.mark.parametrize("binding", ["late", "early"])
@pytest.mark.parametrize(
    "named",
    [
        *({"placement": name, "queue": "fcfs"} for name in catalog.placement_policies()),
        *({"placement": "least_loaded", "queue": name} for name in catalog.queue_policies()),
    ],
    ids=lambda named: "+".join(named.values()),
)
def test_every_workload_is_answered(named, binding):
    setup = make_setup(**named, binding=binding, workers=3, settings={"engine.max_num_seqs": 8})
    for name in SHAPES:
        run = replay(traffic(name), setup)
        assert [record.rejected for record in run.results] == [None] * 50
        assert all(record.arrived <= record.dispatched < record.first_at <= record.ended for record in run.results)


FORMS = [
    {"charge": "input", "only_under_backlog": False},
    {"inside": "lmetric", "quantum": 500},
    {"inside": "fairlead", "quantum": 500, "only_under_backlog": False},
]


@pytest.mark.parametrize("binding", ["late", "early"])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_so_is_every_form_of_d2lpm(form, binding):
    settings = {f"placement.{name}": value for name, value in form.items()} | {"engine.max_num_seqs": 8}
    setup = make_setup(placement="d2lpm", queue="dlpm", binding=binding, workers=3, settings=settings)
    for name in SHAPES:
        assert all(record.completed for record in replay(traffic(name), setup).results)
