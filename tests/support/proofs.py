"""The paired interval of two configurations, from what their runs left, drawing seeds and videos one by one."""

import json
import math
import random
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from prvr_ray.storage import open_store, read_table


def figure_of(folder: Path, run: str, split: str) -> float:
    """SumR of a run: its best epoch on the validation split, or that epoch on the test split."""
    record = json.loads((folder / run / "trial.json").read_text())
    return max(record["curve"].values()) if split == "validation" else record["outcome"]["test"]


def gain_by_hand(folder: Path, candidate: str, reference: str, seeds: tuple[int, ...], split: str) -> dict[str, Any]:
    """The gain at 95 %, as a summary has it, up to what chance leaves open."""
    tables = {
        (name, seed): read_table(open_store(folder / f"{name}-seed{seed}"), f"ranks-{split}.parquet")
        for name in (candidate, reference)
        for seed in seeds
    }
    tables = {key: table.sort_by("query_id") for key, table in tables.items()}
    videos = tables[candidate, seeds[0]]["video_id"].to_pylist()
    sumr = {key: np.array(_sumr(table)) for key, table in tables.items()}
    differences = np.stack([sumr[candidate, seed] - sumr[reference, seed] for seed in seeds])
    figures = [
        figure_of(folder, f"{candidate}-seed{seed}", split) - figure_of(folder, f"{reference}-seed{seed}", split)
        for seed in seeds
    ]
    mean = sum(figures) / len(figures)
    half = t_975(freedom_by_hand(differences, videos)) * _spread_of_draws(differences, videos)
    return {
        "count": len(seeds),
        "mean": pytest.approx(mean),
        "low": pytest.approx(mean - half, abs=0.1 * half + 1e-9),
        "high": pytest.approx(mean + half, abs=0.1 * half + 1e-9),
        "num_videos": len(set(videos)),
    }


def t_975(freedom: float) -> float:
    """The quantile of Student's t for a two-sided interval of 95 %."""
    return float(stats.t.ppf(0.975, freedom))


def freedom_by_hand(differences: np.ndarray, videos: list[str]) -> float:
    """Satterthwaite's degrees of freedom, (seeds, queries) differences summed value by value."""
    rows = differences.tolist()
    of_seeds = statistics.variance([statistics.fmean(row) for row in rows]) / len(rows)
    means = [statistics.fmean(column) for column in zip(*rows, strict=True)]  # of each query over the seeds
    mean = statistics.fmean(means)
    excess = {video: sum(m - mean for m, of in zip(means, videos, strict=True) if of == video) for video in set(videos)}
    of_videos = sum(value**2 for value in excess.values()) / len(means) ** 2
    if not of_seeds + of_videos:  # equal in every query: the interval is one point, whatever the quantile
        return len(rows) - 1
    parts = ((of_seeds, len(rows) - 1), (of_videos, len(excess) - 1))
    return (of_seeds + of_videos) ** 2 / sum(part**2 / freedom for part, freedom in parts)


def _sumr(table: pa.Table) -> list[float]:
    """SumR of each query: of the first 1, 5, 10 and 100 places, the share that its relevant videos fill."""
    return [
        sum(100 * sum(rank <= k for rank in ranks) / min(k, len(ranks)) for k in (1, 5, 10, 100))
        for ranks in table["ranks"].to_pylist()
    ]


def _spread_of_draws(differences: np.ndarray, videos: list[str]) -> float:
    """Standard deviation of the mean over drawn seeds and drawn videos, unbiased in the seeds."""
    chance, num_seeds = random.Random(7), len(differences)
    of_video = {video: [q for q, other in enumerate(videos) if other == video] for video in videos}
    centre = differences.mean(0)
    scaled = centre + (differences - centre) * math.sqrt(num_seeds / (num_seeds - 1))
    names, means = list(of_video), []
    for _ in range(2000):
        seeds = chance.choices(range(num_seeds), k=num_seeds)
        queries = [query for name in chance.choices(names, k=len(names)) for query in of_video[name]]
        means.append(scaled[seeds][:, queries].mean())
    return float(np.std(means, ddof=1))
