"""How shards are cut into units: whole shards, in order, and large enough beside what they leave behind."""

import pytest

from prvr_ray.scores.plan import cut_units, unit_size


def shards_of(*sizes):
    return [{"bytes": size} for size in sizes]


@pytest.mark.parametrize(
    ("sizes", "unit_bytes", "expected"),
    [
        ([], 10, []),
        ([4, 4, 4, 4, 4], 10, [(0, 2), (2, 4), (4, 5)]),
        ([30, 1, 1, 30], 10, [(0, 1), (1, 3), (3, 4)]),
        ([5, 5, 5], 15, [(0, 3)]),
        ([5, 5, 5], 1, [(0, 1), (1, 2), (2, 3)]),
    ],
)
def test_units_are_runs_of_shards_of_about_the_size(sizes, unit_bytes, expected):
    assert cut_units(shards_of(*sizes), unit_bytes) == expected


@pytest.mark.parametrize(
    ("wanted", "partial", "total", "expected"),
    [
        (256, 1, 10_000, 256),  # the partial is small anyway
        (256, 100, 10_000, 800),  # never more than an eighth of its unit, though few units come of it
        (256, 100, 1_000_000, 3200),  # a thirty-second, for there are many
        (256, 100, 128_000, 2000),  # in between: 64 units
    ],
)
def test_a_units_size_keeps_its_partial_small(wanted, partial, total, expected):
    assert unit_size(wanted, partial, shards_of(*[total // 10] * 10)) == expected
