"""What fleet, prefixes and estimates cost a plain request on an idle fleet: Python calls, not seconds."""

import sys
from collections import Counter
from pathlib import Path

from policies import catalog
from policies.knowledge import Knowledge
from policies.model import PrefixKey, RequestView, Usage, WorkerFacts
from policies.scheduler.scheduler import Scheduler, SchedulerSettings

ROOMS = ("fleet", "prefixes", "estimates")


def lifetime(made, number):
    now, prompt = number * 0.1, b"system prompt" * 100 + b"%d" % number * 300
    fields = {"input_tokens": len(prompt) // 4, "expected_output_tokens": 200, "arrived": now, "streams": True}
    request = RequestView(f"r{number}", "anna", "model", PrefixKey(prompt), **fields)
    ticket = made.submit(request, now)
    made.decisions(now)
    made.first_token(ticket, now + 0.01)
    made.decisions(now + 0.01)
    made.settled(ticket, Usage(request.input_tokens, 200), now + 0.05)
    made.decisions(now + 0.05)


def test_from_submit_to_settled_the_rooms_take_few_calls_whatever_the_size_of_the_fleet():
    knowledge = Knowledge()
    order = catalog.queue_policies()["fcfs"].build(knowledge=knowledge)
    placement = catalog.placement_policies()["round_robin"].build(knowledge=knowledge)
    made = Scheduler(order, placement, SchedulerSettings(), knowledge)
    for number in range(64):
        made.worker_joined(WorkerFacts(f"w{number}", frozenset({"model"}), slots=8), 0.0)
    for number in range(100):
        lifetime(made, number)
    calls = Counter()

    def count(frame, event, _):
        if event == "call":
            calls[Path(frame.f_code.co_filename).parent.name] += 1

    sys.setprofile(count)
    try:
        for number in range(100, 150):
            lifetime(made, number)
    finally:
        sys.setprofile(None)
    assert sum(calls[room] for room in ROOMS) / 50 <= 120
