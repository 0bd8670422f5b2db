"""What the scheduler knows and lets its policies read: prefixes, answer lengths, and a seeded source of chance."""

from dataclasses import dataclass, field
from random import Random

from policies.lengths import Lengths
from policies.prefixes import Prefixes


@dataclass(frozen=True, slots=True)
class Knowledge:
    """One pool's knowledge. The scheduler moves it; a policy that changes anything here breaks the rules."""

    prefixes: Prefixes = field(default_factory=Prefixes)
    lengths: Lengths = field(default_factory=Lengths)
    rng: Random = field(default_factory=lambda: Random(0))
