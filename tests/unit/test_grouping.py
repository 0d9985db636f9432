"""How a batch is cut into groups."""

from __future__ import annotations

import itertools
import random

import pytest

from workers.engines.grouping import Grouping


def price(grouping: Grouping, lengths: list[int], sizes: list[int]) -> int:
    starts = [0, *itertools.accumulate(sizes)]
    return sum(grouping.cost + size * lengths[start] for size, start in zip(sizes, starts, strict=False))


@pytest.mark.parametrize(
    ("lengths", "sizes"),
    [
        ([], []),
        ([7], [1]),
        ([60] + [10] * 4, [1, 4]),  # padding would cost more than a group does
        ([12, 11, 10], [3]),  # a group costs more than a little padding
        ([40] * 7, [5, 2]),  # two hundred tokens are full
        ([300, 300, 5], [1, 1, 1]),  # one that is longer than a group goes alone
    ],
)
def test_groups_are_of_like_length_and_few(lengths: list[int], sizes: list[int]) -> None:
    assert Grouping(tokens=200, cost=8).sizes(lengths, most=100) == sizes


def test_no_group_has_more_texts_than_it_may() -> None:
    assert Grouping(tokens=1000, cost=8).sizes([5] * 10, most=5) == [5, 5]


def test_groups_cost_less_than_full_ones_do_and_keep_their_bounds() -> None:
    grouping, chance = Grouping(tokens=512, cost=8), random.Random(4)
    for _ in range(50):
        kinds = [chance.randint(1, 90) for _ in range(chance.randint(1, 9))]
        lengths = sorted((chance.choice(kinds) for _ in range(chance.randint(1, 150))), reverse=True)
        sizes = grouping.sizes(lengths, most=len(lengths))
        assert sum(sizes) == len(lengths)
        full, left = [], lengths
        while left:
            full.append(min(len(left), max(1, 512 // left[0])))
            left = left[full[-1] :]
        starts = [0, *itertools.accumulate(sizes)]
        assert all(size == 1 or size * lengths[at] <= 512 for size, at in zip(sizes, starts, strict=False))
        assert price(grouping, lengths, sizes) <= price(grouping, lengths, full)
