"""The paired interval of two configurations, worked out from the records of their runs with a printed table of t."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

T_975 = {1: 12.7062, 2: 4.30265, 3: 3.18245, 4: 2.77645}  # two-sided 95 %, by degrees of freedom
DIGITS = 1e-5  # how far an interval may be off, relatively, with these


def figure_of(folder: Path, run: str, split: str) -> float:
    """SumR of a run: its best epoch on the validation split, or that epoch on the test split."""
    record = json.loads((folder / run / "trial.json").read_text())
    return max(record["curve"].values()) if split == "validation" else record["outcome"]["test"]


def gain_by_hand(folder: Path, candidate: str, reference: str, seeds: tuple[int, ...], split: str) -> dict[str, Any]:
    """The gain at 95 %, as a summary has it, up to the digits of the table."""
    gains = [
        figure_of(folder, f"{candidate}-seed{seed}", split) - figure_of(folder, f"{reference}-seed{seed}", split)
        for seed in seeds
    ]
    mean = sum(gains) / len(gains)
    variance = sum((gain - mean) ** 2 for gain in gains) / (len(gains) - 1)
    half = T_975[len(gains) - 1] * math.sqrt(variance / len(gains))
    error = half * DIGITS + 1e-9
    return {
        "count": len(gains),
        "mean": pytest.approx(mean),
        "low": pytest.approx(mean - half, abs=error),
        "high": pytest.approx(mean + half, abs=error),
    }
