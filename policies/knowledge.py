"""What the scheduler knows and lets its policies read: prefixes, answer lengths, when pairs pay, chance."""

from dataclasses import dataclass, field
from random import Random

from policies.estimates.answer_length import AnswerLengths
from policies.estimates.heatmap import LearnedHeatmap
from policies.prefixes.index import Prefixes


@dataclass(frozen=True, slots=True)
class Knowledge:
    """One pool's knowledge. The scheduler moves it; a policy that changes anything here breaks the rules."""

    prefixes: Prefixes = field(default_factory=Prefixes)
    lengths: AnswerLengths = field(default_factory=AnswerLengths)
    heatmap: LearnedHeatmap = field(default_factory=LearnedHeatmap)
    """Moved by `Disaggregation`."""
    rng: Random = field(default_factory=lambda: Random(0))
