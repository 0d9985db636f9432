"""Which texts of a batch go through the model together.

A group is computed as if all its texts were as long as its longest, so its texts should be of like length; but each
group has a cost of its own too, so there should be few.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Grouping:
    """What a kind of model takes at once."""

    tokens: int  # of a group, padding included, unless one text has more
    cost: int  # a group costs as much as so many tokens, beside its own

    def sizes(self, lengths: Sequence[int], most: int) -> list[int]:
        """How many texts each group gets, at most `most`; `lengths` are theirs in tokens, the longest first.

        The cheapest way to cut the row at places where the length changes or where a group is full.
        """
        count = len(lengths)
        changes = [at for at in range(1, count) if lengths[at] != lengths[at - 1]] + [count]
        costs = [0] * (count + 1)  # of the texts from here on
        sizes = [0] * count  # of the group that begins here
        for start in range(count - 1, -1, -1):
            longest = max(1, lengths[start])
            full = min(count, start + max(1, min(most, self.tokens // longest)))
            ends = [full, *changes[bisect_right(changes, start) : bisect_right(changes, full)]]
            costs[start], end = min((self.cost + longest * (end - start) + costs[end], -end) for end in ends)
            sizes[start] = -end - start
        return _row(sizes)


def _row(sizes: list[int]) -> list[int]:
    row, start = [], 0
    while start < len(sizes):
        row.append(sizes[start])
        start += sizes[start]
    return row
