"""One pool's scheduler with the policies that the operator chose: the same for the gateway and for the lab."""

from collections.abc import Sequence
from random import Random

from policies.knowledge import Knowledge
from policies.model import WorkerFacts
from policies.scheduler.disaggregation import shortfall
from policies.scheduler.scheduler import Scheduler, SchedulerSettings
from router.config import policy_catalog
from router.config.schema import Config
from router.heatmap.file import read_heatmap, shipped_heatmap


def make_scheduler(config: Config, seed: int = 0) -> Scheduler:
    """A fresh scheduler with policies of its own; `seed` decides what they leave to chance.

    Raises HeatmapError if the heatmap's file has become unreadable since the configuration was checked.
    """
    chosen, limits = config.policies, config.limits
    heatmap = shipped_heatmap() if chosen.heatmap is None else read_heatmap(chosen.heatmap)
    knowledge = Knowledge(heatmap=heatmap, rng=Random(seed))
    placement = policy_catalog.find("placement", chosen.placement.name).build(chosen.placement.settings, knowledge)
    order = policy_catalog.find("queue", chosen.queue.name).build(chosen.queue.settings, knowledge)
    settings = SchedulerSettings(
        max_queued=limits.queue_requests,
        max_wait_s=limits.queue_wait_s,
        attempts=limits.attempts,
        prefill_window_s=chosen.prefill_window_s,
        prefill_window_tokens=chosen.prefill_window_tokens,
        kv_margin=chosen.kv_margin,
        hold_s=chosen.hold_ms / 1000,
        hold_gain=chosen.hold_gain,
        binding=chosen.binding,
        disaggregate=chosen.disaggregate,
    )
    return Scheduler(order, placement, settings, knowledge)


def roles_shortfall(config: Config, workers: Sequence[WorkerFacts]) -> str | None:
    """What the chosen policies want of roles that these workers lack, and what happens instead; else None."""
    chosen = config.policies
    wants_pairs = policy_catalog.find("placement", chosen.placement.name).wants_pairs
    return shortfall(workers, chosen.disaggregate, wants_pairs=wants_pairs)
