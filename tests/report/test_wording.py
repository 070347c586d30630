"""Numbers read as a person would write them."""

import pytest

from prvr_ray.report.wording import clock, count, duration, interval, seed_cells, signed, span, spread


@pytest.mark.parametrize(
    ("seconds", "digits", "shown"),
    [
        (0, 0, "0:00"),
        (7.4, 0, "0:07"),
        (59.6, 0, "1:00"),
        (3725, 0, "1:02:05"),
        (7.36, 1, "0:07.4"),
        (59.97, 1, "1:00.0"),
    ],
)
def test_clock(seconds, digits, shown):
    assert clock(seconds, digits) == shown


def test_a_short_span_has_tenths():
    assert span(21.84, 22.6) == "0:21.8–0:22.6"
    assert span(21.84, 62.6) == "0:22–1:03"


@pytest.mark.parametrize(("seconds", "shown"), [(42, "42 s"), (750, "12.5 min"), (11520, "3.2 h"), (36e5, "1,000.0 h")])
def test_duration(seconds, shown):
    assert duration(seconds) == shown


@pytest.mark.parametrize(("value", "shown"), [(1.25, "+1.2"), (-0.44, "−0.4"), (-0.04, "0.0"), (0.0, "0.0")])
def test_signed(value, shown):
    assert signed(value) == shown


@pytest.mark.parametrize(
    ("number", "noun", "shown"), [(1, "video", "1 video"), (1200, "video", "1,200 videos"), (0, "query", "0 queries")]
)
def test_count(number, noun, shown):
    assert count(number, noun) == shown


def test_runs_over_seeds_read_as_mean_and_spread():
    assert spread({"mean": 150.04, "sd": 2.51}) == "150.0 ± 2.5"
    assert spread({"mean": 150.04, "sd": None}) == "150.0"
    assert spread(None) == "–"
    assert interval(-0.31, 10.2) == "−0.3 to +10.2"


def test_a_configuration_over_seeds_has_a_spread_and_a_difference_per_split():
    row = {
        "validation": {"mean": 150.04, "sd": 2.51},
        "validation_gain": {"mean": 4.96, "low": -0.31, "high": 10.2},
        "test": {"mean": 140.0, "sd": None},
        "test_gain": {"mean": -1.0, "low": None, "high": None},
    }
    assert seed_cells(row, ["validation", "test"]) == [
        ("150.0 ± 2.5", ""),
        ("+5.0", "−0.3 to +10.2"),
        ("140.0", ""),
        ("−1.0", ""),
    ]
    assert seed_cells({"test": None, "test_gain": None}, ["test"]) == [("–", ""), ("–", "")]
