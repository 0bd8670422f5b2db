"""Programs that ask much about one text: trees of thoughts, judgements, questions about a long document.

Sizes, and those of the misbehaving clients, are from the D2LPM paper (arXiv 2501.14312, evaluation), except where
a comment says [ours].
"""

from dataclasses import dataclass, replace
from random import Random
from typing import ClassVar, Self

from router.lab.workloads.prompts import NO_PARENT
from router.lab.workloads.request_table import NO_ROW, RequestTable
from router.lab.workloads.shapes import MORE, Count, Misbehaviour, Spread, Tokens, Write, gap, length


@dataclass(frozen=True, slots=True)
class TreeOfThoughts:
    """A question, from which `branches` thoughts are drawn, from each of them as many again, `height` levels deep.

    A thought's children start when it has ended, and read it. 2 branches make 30 requests a tree, 4 make 340.
    """

    rate: ClassVar[float] = 30.0
    question_tokens: Tokens = 546
    """What a whole tree shares. The paper calls the questions short, so this has its instructions in it [ours]."""
    question_spread: Spread = 0.2
    output_tokens: Count = 256
    instruction_tokens: Count = 24
    """Between a thought and what is drawn from it [ours]."""
    height: Count = 4
    branches: Count = 2

    def requests_per_program(self) -> float:
        return float(sum(self.branches**level for level in range(1, self.height + 1)))

    def misbehaving(self, how: Misbehaviour) -> tuple[Self, float]:
        if how == "s1":
            return replace(self, branches=2 * self.branches), 1.0
        return replace(self, question_tokens=10 * self.question_tokens), 1.0

    def begin(self, table: RequestTable, chance: Random) -> Write:
        del chance
        prompts = table.prompts

        def write(client: int, at: float, session: int, chance: Random) -> None:
            level = [(prompts.grow(NO_PARENT, length(chance, self.question_tokens, self.question_spread)), NO_ROW)]
            for depth in range(self.height):
                above, level = level, []
                for text, after in above:
                    prompt = prompts.grow(text, self.instruction_tokens) if depth else text
                    for _ in range(self.branches):
                        thought = prompts.grow(prompt, self.output_tokens)
                        row = table.add(
                            at, client, prompt, self.output_tokens, reply=thought, session=session, after=after
                        )
                        level.append((thought, row))

        return write


@dataclass(frozen=True, slots=True)
class Judge:
    """An essay, judged in several dimensions at once."""

    rate: ClassVar[float] = 30.0
    essay_tokens: Tokens = 2660
    """With the dimension 2701 in the mean."""
    essay_spread: Spread = 0.2
    dimension_tokens: Count = 41
    """Of a prompt, what it shares with no other [ours]."""
    output_tokens: Count = 256
    dimensions: Count = 2

    def requests_per_program(self) -> float:
        return float(self.dimensions)

    def misbehaving(self, how: Misbehaviour) -> tuple[Self, float]:
        if how == "s1":
            return replace(self, dimensions=8 * self.dimensions), 1.0
        return replace(self, essay_tokens=self.essay_tokens + 600), 1.0

    def begin(self, table: RequestTable, chance: Random) -> Write:
        del chance
        prompts = table.prompts

        def write(client: int, at: float, session: int, chance: Random) -> None:
            essay = prompts.grow(NO_PARENT, length(chance, self.essay_tokens, self.essay_spread))
            for _ in range(self.dimensions):
                prompt = prompts.grow(essay, self.dimension_tokens)
                table.add(at, client, prompt, self.output_tokens, session=session)

        return write


@dataclass(frozen=True, slots=True)
class LongQuestions:
    """A long document and questions about it, one after the other whether or not the last is answered."""

    rate: ClassVar[float] = 4.0
    document_tokens: Tokens = 21_400
    """With the question 21,449 in the mean."""
    document_spread: Spread = 0.3
    question_tokens: Tokens = 49
    output_tokens: Tokens = 15
    spread: Spread = 0.5
    """Of questions and answers [ours]."""
    questions: Count = 8
    """Per document [ours]."""
    gap_s: Spread = 2.0
    """Mean time between two questions [ours]."""

    def requests_per_program(self) -> float:
        return float(self.questions)

    def misbehaving(self, how: Misbehaviour) -> tuple[Self, float]:
        if how == "s1":
            return self, MORE
        return replace(self, document_tokens=2 * self.document_tokens), 1.0

    def begin(self, table: RequestTable, chance: Random) -> Write:
        del chance
        prompts = table.prompts

        def write(client: int, at: float, session: int, chance: Random) -> None:
            document = prompts.grow(NO_PARENT, length(chance, self.document_tokens, self.document_spread))
            for _ in range(self.questions):
                prompt = prompts.grow(document, length(chance, self.question_tokens, self.spread))
                answer = length(chance, self.output_tokens, self.spread)
                table.add(at, client, prompt, answer, session=session)
                at += gap(chance, self.gap_s)

        return write
