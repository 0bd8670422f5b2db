"""Workers that come and go during a replay.

As text, with commas between: `join@30`, `join@30:prefill`, `drain@60:worker-2`, `lose@90:worker-1`.

- `join`: a worker with an empty cache is added; `mixed` unless a role is given. It gets the next free number.
- `drain`: it leaves with notice. It finishes what it runs, is sent nothing more, and then is gone.
- `lose`: it dies. What runs there breaks off, connections to it are refused, and that it is down is known with the
  next health check.
"""

import re
from dataclasses import dataclass
from typing import Literal, cast

Role = Literal["mixed", "prefill", "decode"]
FORMS = "join@30, join@30:decode, drain@60:worker-2, lose@90:worker-1"
_FORM = re.compile(
    r"\s*(?:(join)@([0-9.]+)(?::(mixed|prefill|decode))?|(drain|lose)@([0-9.]+):worker-([0-9]{1,4}))\s*"
)


@dataclass(frozen=True, slots=True, order=True)
class FleetChange:
    """One worker comes or goes."""

    at: float
    """Seconds from the start of the workload."""
    kind: Literal["join", "drain", "lose"]
    worker: int
    """Its number; of one that joins, the number it gets."""
    role: Role = "mixed"


def parse_changes(text: str, workers: int) -> tuple[FleetChange, ...]:
    """Changes of a fleet that starts with `workers` workers, in the order of their times.

    Raises ValueError for what has another form, and for a worker that is not there then.
    """
    found = []
    for part in filter(str.strip, text.split(",")):
        match = _FORM.fullmatch(part)
        try:
            at = float(match[2] or match[5]) if match else -1.0
        except ValueError:
            match = None
        if match is None:
            raise ValueError(f"`{part.strip()}`: expected forms such as {FORMS}")
        found.append((at, match))
    changes, present, next_number = [], set(range(workers)), workers
    for at, match in sorted(found, key=lambda each: each[0]):
        if match[1]:
            changes.append(FleetChange(at, "join", next_number, cast("Role", match[3] or "mixed")))
            present.add(next_number)
            next_number += 1
            continue
        number = int(match[6])
        if number not in present:
            raise ValueError(f"`{match[0].strip()}`: there is no worker-{number} at {at:g} s")
        present.remove(number)
        changes.append(FleetChange(at, cast("Literal['drain', 'lose']", match[4]), number))
    return tuple(changes)
