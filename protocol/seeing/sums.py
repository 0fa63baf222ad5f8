"""Counters that only grow, copied and added up whatever their fields are; what every refusal adds to them. Pure."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass, field, fields
from typing import Self

MOST_CODES = 24  # reasons that one scope tells apart; the protocol has nine
OTHER = "other"
# Upper bounds of the slack that a refusal leaves, in seconds: from "too late to do anything" to "plenty".
SLACK_BOUNDS_S = (0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)


@dataclass(slots=True)
class Refusals:
    """Sums since the start. Inherit and add fields: numbers, lists of numbers, dictionaries of counts."""

    refused: dict[str, int] = field(default_factory=dict)  # by code
    slack: list[int] = field(default_factory=lambda: [0] * (len(SLACK_BOUNDS_S) + 1))  # refusals per bound, then more
    slack_s: float = 0.0  # the three are of refusals that had a budget
    slack_share: float = 0.0  # sum of slack / budget
    slack_budgeted: int = 0  # how many refusals that are

    @property
    def refusals(self) -> int:
        return sum(self.refused.values())

    def refuse(self, code: str, slack_s: float, budget_s: float) -> None:
        """A budget of 0 or infinity is none: the refusal counts, its slack does not."""
        count(self.refused, code)
        if 0.0 < budget_s < math.inf:
            slack_s = max(slack_s, 0.0)
            self.slack[bisect_left(SLACK_BOUNDS_S, slack_s)] += 1
            self.slack_s += slack_s
            self.slack_share += slack_s / budget_s
            self.slack_budgeted += 1

    def copy(self) -> Self:
        made = type(self)()
        made.absorb(self)
        return made

    def absorb(self, other: Self) -> None:
        """Add another's."""
        for each in fields(self):
            mine, its = getattr(self, each.name), getattr(other, each.name)
            if isinstance(mine, dict):
                for key, number in its.items():
                    mine[key] = mine.get(key, 0) + number
            elif isinstance(mine, list):
                mine[:] = [a + b for a, b in zip(mine, its, strict=True)]
            else:
                setattr(self, each.name, mine + its)


def count(counts: dict[str, int], what: str, most: int = MOST_CODES, by: int = 1) -> None:
    """`by` more of `what`; kinds beyond `most` are counted as `OTHER`."""
    if what not in counts and len(counts) >= most:
        what = OTHER
    counts[what] = counts.get(what, 0) + by
