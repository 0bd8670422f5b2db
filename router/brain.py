"""One pool's scheduler with the policies that the operator chose: the same for the gateway and for the lab."""

from random import Random

from policies import catalog
from policies.early import EarlyLines
from policies.knowledge import Knowledge
from policies.protocol import QueuePolicy
from policies.scheduler import Scheduler, SchedulerSettings
from router.config import Config


def scheduler_for(config: Config, seed: int = 0) -> Scheduler:
    """A fresh scheduler with policies of its own; `seed` decides what they leave to chance."""
    chosen, limits = config.policies, config.limits
    knowledge = Knowledge(rng=Random(seed))
    placement = catalog.placement_policies()[chosen.placement.name].build(chosen.placement.settings, knowledge)

    def make_queue() -> QueuePolicy:
        return catalog.queue_policies()[chosen.queue.name].build(chosen.queue.settings, knowledge)

    settings = SchedulerSettings(
        max_queued=limits.queue_requests,
        max_wait_s=limits.queue_wait_s,
        attempts=limits.attempts,
        prefill_window_s=chosen.prefill_window_s,
        prefill_window_tokens=chosen.prefill_window_tokens,
        hold_s=chosen.hold_ms / 1000,
    )
    if chosen.binding == "late":
        return Scheduler(make_queue(), placement, settings, knowledge)
    lines = EarlyLines(make_queue, placement, knowledge.prefixes)
    scheduler = Scheduler(lines, placement, settings, knowledge)
    lines.choose_among(scheduler.able, scheduler.faults)
    return scheduler
