"""Compares exact and fast scoring with the matrix product alone: `python benchmarks/scoring.py [--quick]`.

Clustered vectors, ragged videos, two branches, float16 frames; converting them is part of the time. The last line of
standard output is one JSON object.
"""

import argparse
import itertools
import json
import resource
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from prvr_ray.retrieval import products
from prvr_ray.retrieval.matmul import has_bfloat16
from prvr_ray.retrieval.scoring import FrameBlock, search

K, DIM, WEIGHTS = 100, 384, (0.7, 0.3)
MIN_FRAMES, MAX_FRAMES = 20, 128
TILE_ROWS = (512, 1024, 2048)
ROUNDS = 9  # alternating, so that other load on the machine slows a whole round


def clustered_block(
    rng: np.random.Generator, num_videos: int, dim: int = DIM, frames: tuple[int, int] = (MIN_FRAMES, MAX_FRAMES)
) -> FrameBlock:
    """Make videos of drifting scenes around common centres, so that frames of several videos compete."""
    lengths_V = rng.integers(frames[0], frames[1] + 1, num_videos)
    offsets = np.concatenate([[0], np.cumsum(lengths_V)])
    centres = rng.standard_normal((50, dim), dtype=np.float32)
    branches = []
    for _ in WEIGHTS:
        rows_RD = 0.3 * rng.standard_normal((offsets[-1], dim), dtype=np.float32)
        for start, stop in itertools.pairwise(offsets):
            scene = centres[rng.integers(len(centres))] + 0.7 * rng.standard_normal(dim, dtype=np.float32)
            rows_RD[start:stop] = np.cumsum(rows_RD[start:stop], axis=0) + scene
        rows_RD /= np.linalg.norm(rows_RD, axis=1, keepdims=True)
        branches.append(rows_RD.astype(np.float16))
    return FrameBlock([f"video-{number:07d}" for number in range(num_videos)], offsets, branches)


def queries_near(rng: np.random.Generator, block: FrameBlock, num_queries: int) -> list[tuple[float, np.ndarray]]:
    """Make queries: noisy copies of some frames."""
    picked = rng.integers(0, len(block.frames[0]), num_queries)
    rows = [np.asarray(f)[picked].astype(np.float32) for f in block.frames]
    rows = [r + rng.standard_normal(r.shape, dtype=np.float32) / np.float32(r.shape[1] ** 0.5) for r in rows]
    return [(w, r / np.linalg.norm(r, axis=1, keepdims=True)) for w, r in zip(WEIGHTS, rows, strict=True)]


def seconds(work: Callable[[], object], repeats: int = 3) -> float:
    """Return the best time of several runs."""
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return min(times)


def products_alone(block: FrameBlock, queries: list[tuple[float, np.ndarray]]) -> list[Callable[[], None]]:
    """The float32 products alone, in several layouts, of frames already converted to float32."""
    pairs = [
        (torch.from_numpy(f).float(), torch.from_numpy(q)) for f, (_, q) in zip(block.frames, queries, strict=True)
    ]

    def frames_first(tile_rows: int) -> None:
        out = torch.empty(tile_rows, len(queries[0][1]))
        for rows_RD, queries_QD in pairs:
            for part in rows_RD.split(tile_rows):
                torch.mm(part, queries_QD.T, out=out[: len(part)])

    def queries_first(tile_rows: int) -> None:
        out = torch.empty(tile_rows * len(queries[0][1]))
        for rows_RD, queries_QD in pairs:
            for part in rows_RD.split(tile_rows):
                torch.mm(queries_QD, part.T, out=out[: len(part) * len(queries_QD)].view(len(queries_QD), -1))

    def numpy_whole() -> None:
        for rows_RD, queries_QD in pairs:
            queries_QD.numpy() @ rows_RD.numpy().T

    tiled = [partial(layout, rows) for layout in (frames_first, queries_first) for rows in TILE_ROWS]
    return [numpy_whole, *tiled]


def examined_share(block: FrameBlock, queries: list[tuple[float, np.ndarray]], mode: str) -> float:
    """Measure the fraction of (query, video) pairs scored with exact dot products."""
    counted, score = [0], products.FusedProducts.score

    def counting(self: products.FusedProducts, wanted_WQ: torch.Tensor) -> products.Pairs:
        counted[0] += int(wanted_WQ.sum())
        return score(self, wanted_WQ)

    products.FusedProducts.score = counting  # type: ignore[method-assign]
    try:
        search(queries, [block], K, mode)
    finally:
        products.FusedProducts.score = score  # type: ignore[method-assign]
    return counted[0] / (len(queries[0][1]) * len(block.video_ids))


def kernel(rng: np.random.Generator, num_videos: int, num_queries: int) -> dict[str, float]:
    """Time `exact`, `fast` and the products in every layout, alternating.

    A ratio is the median of the rounds' ratios to the layout with the best median.
    """
    block = clustered_block(rng, num_videos)
    queries = queries_near(rng, block, num_queries)
    modes: list[Callable[[], object]] = [partial(search, queries, [block], K, mode) for mode in ("exact", "fast")]
    for work in modes:
        work()  # warm up: later rounds reuse this memory
    works = [*modes, *products_alone(block, queries)]
    seconds_RW = np.array([[seconds(work, repeats=1) for work in works] for _ in range(ROUNDS)])
    fastest = np.median(seconds_RW[:, 2:], axis=0).argmin() + 2
    ratios_RW = seconds_RW[:, [fastest]] / seconds_RW[:, :2]
    figures = {"product_s": float(np.median(seconds_RW[:, fastest]))}
    figures["fast_in_bfloat16"] = float(has_bfloat16(torch.device("cpu")))
    for mode, ratios_R in zip(("exact", "fast"), ratios_RW.T, strict=True):
        low, middle, high = np.quantile(ratios_R, (0.25, 0.5, 0.75)).tolist()
        figures |= {f"{mode}_over_product": middle, f"{mode}_lower_quartile": low, f"{mode}_upper_quartile": high}
        figures[f"{mode}_examined_share"] = examined_share(block, queries, mode)
    return {**figures, "frames_per_s": len(block.frames[0]) / float(np.median(seconds_RW[:, 0]))}


def linearity(rng: np.random.Generator, num_videos: int, num_queries: int) -> dict[str, float]:
    """Compute R^2 of a linear fit to the times at one, two, three and four quarters."""
    block = clustered_block(rng, num_videos)
    queries = queries_near(rng, block, num_queries)
    shares = (0.25, 0.5, 0.75, 1.0)

    def some_videos(share: float) -> float:
        stop = int(share * num_videos)
        rows = block.branch_offsets[0][stop]
        part = FrameBlock(block.video_ids[:stop], block.branch_offsets[0][: stop + 1], [f[:rows] for f in block.frames])
        return seconds(lambda: search(queries, [part], K))

    def some_queries(share: float) -> float:
        stop = int(share * num_queries)
        return seconds(lambda: search([(w, q[:stop]) for w, q in queries], [block], K))

    return {
        "linear_in_frames_r2": float(np.corrcoef(shares, [some_videos(share) for share in shares])[0, 1] ** 2),
        "linear_in_queries_r2": float(np.corrcoef(shares, [some_queries(share) for share in shares])[0, 1] ** 2),
    }


def many_queries(rng: np.random.Generator, num_queries: int, num_videos: int) -> dict[str, float]:
    """Measure time and the peak memory of this process."""
    block = clustered_block(rng, num_videos, 64, (8, 8))
    queries = queries_near(rng, block, num_queries)
    taken = seconds(lambda: search(queries, [block], K), repeats=1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"many_queries_s": taken, "peak_memory_gb": peak / 1e9}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the size, as a smoke test")
    small = 10 if parser.parse_args().quick else 1
    rng = np.random.default_rng(0)
    figures = many_queries(
        rng, 100_000 // small, 10_000 // small
    )  # first, because the peak is that of the whole process
    figures |= kernel(rng, 2_500 // small, 1_000)
    figures |= linearity(rng, 2_500 // small, 1_000)
    for name, value in figures.items():
        print(f"{name:28s} {value:12.4f}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
