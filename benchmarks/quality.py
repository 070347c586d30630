"""Compares the rows of `prvr evaluate` on held-out queries, with paired intervals: the gain from weights and hubness.

Worlds are planted (`benchmarks/planted.py`) or copies of existing collections, such as the demo's, optionally with
fewer captioned videos. On each, students are trained on several seeds, weights are chosen on validation, and the
test split is evaluated once. Differences are paired by query, averaged over the seeds, and resampled by video.

    python benchmarks/quality.py --noise low middle high --seeds 3
    python benchmarks/quality.py --noise --collections demo-root --captioned 10 25 50 100 200 --preset demo
"""

import argparse
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import planted
import pyarrow as pa
import pyarrow.compute as pc

from prvr_ray.collection import open_collection
from prvr_ray.config import Config, EvaluateSettings, resolve
from prvr_ray.evaluation.intervals import bootstrap
from prvr_ray.evaluation.verdict import sumr_of_queries
from prvr_ray.stages.evaluate import evaluate
from prvr_ray.stages.session import connect
from prvr_ray.stages.train import train
from prvr_ray.storage import read_table

ROWS = ("teacher", "fused", "teacher+student", "chosen", "chosen+hubness")
PAIRS = (("chosen", "fused"), ("chosen+hubness", "fused"), ("chosen+hubness", "chosen"), ("fused", "teacher"))
VALIDATION_RATIO, FEWEST_VALIDATION = 4, 5  # captioned training videos per validation video, and minimum

Values = dict[str, np.ndarray]  # row -> each query's own SumR


def measure(root: str, config: Config, seeds: Sequence[int]) -> dict[str, float]:
    """Train on each seed, choose weights, evaluate the test split.

    Returns:
        `<row>`: mean SumR; `<first>-<second>`: mean of the paired differences, with `_low` and `_high`; and
        `best-served`: chosen+hubness minus the better one of fused and teacher.
    """
    by_seed, clusters = [], list[str]()
    for seed in seeds:
        run = f"quality-{seed}"
        trained = config.model_copy(update={"train": config.train.model_copy(update={"seed": seed})})
        train(trained, root=root, run=run)
        evaluate(EvaluateSettings(choose_weights=True), config.index, root=root, run=run, split="test")
        values, clusters = read_values(root, run)
        by_seed.append(values)
    mean = {row: np.mean([values[row] for values in by_seed], axis=0) for row in ROWS}
    figures = {row: float(values_Q.mean()) for row, values_Q in mean.items()}
    better = max(("fused", "teacher"), key=figures.__getitem__)
    for name, pair in {**{"-".join(pair): pair for pair in PAIRS}, "best-served": ("chosen+hubness", better)}.items():
        figures |= difference(name, mean[pair[0]] - mean[pair[1]], clusters)
    return figures


def read_values(root: str, run: str) -> tuple[Values, list[str]]:
    """Return the SumR of each query in every row, and the video of each query."""
    collection = open_collection(root)
    ranks = read_table(collection.store.child(f"runs/{run}/evaluations"), "test-held-out.parquet")
    videos = collection.queries("test").select(["query_id", "video_ids"]).to_pylist()
    video_of = {query["query_id"]: min(query["video_ids"]) for query in videos}
    parts = {row: ranks.filter(pc.equal(ranks["row"], row)).sort_by("query_id") for row in ROWS}
    values = {row: sumr_of_queries([np.array(r) for r in part["ranks"].to_pylist()]) for row, part in parts.items()}
    return values, [video_of[query_id] for query_id in parts["fused"]["query_id"].to_pylist()]


def difference(name: str, values_Q: np.ndarray, clusters: list[str]) -> dict[str, float]:
    """Compute a mean and its 95 % interval, resampling videos."""
    low, high = bootstrap(values_Q[:, None], clusters, num_resamples=2000, confidence=0.95, seed=0)[:, 0]
    return {name: float(values_Q.mean()), f"{name}_low": float(low), f"{name}_high": float(high)}


def worlds(arguments: argparse.Namespace, folder: Path) -> Iterator[tuple[str, str]]:
    """Yield name and root of each world; all are new or copies, so no run of the user's is modified."""
    num_videos = {split: max(2, round(n * arguments.scale)) for split, n in planted.NUM_VIDEOS.items()}
    for noise in arguments.noise:
        root = folder / f"planted-{noise}"
        planted.plant(str(root), noise=planted.NOISE[noise], seed=arguments.world_seed, num_videos=num_videos)
        yield root.name, str(root)
    for source in map(Path, arguments.collections):
        for captioned in arguments.captioned:
            root = folder / f"{source.name}-{captioned}"
            copy_with_captions(source, root, captioned, arguments.world_seed)
            yield root.name, str(root)


def copy_with_captions(source: Path, target: Path, captioned: int, seed: int) -> None:
    """Copy videos and features, and the captions of some training and validation videos and of all test videos."""
    for name in ("videos", "features"):
        shutil.copytree(source / name, target / name)
    videos, queries = open_collection(str(source)).videos(), open_collection(str(source)).queries()
    rng, kept = np.random.default_rng(seed), list[str]()
    few = max(FEWEST_VALIDATION, captioned // VALIDATION_RATIO)
    for split, number in (("train", captioned), ("val", few), ("test", len(videos))):
        ids = sorted(videos.filter(pc.equal(videos["split"], split))["video_id"].to_pylist())
        kept += [ids[place] for place in rng.permutation(len(ids))[:number]]
    first = pa.array([ids[0] if ids else None for ids in queries["video_ids"].to_pylist()], pa.string())
    folder = open_collection(str(target)).query_shards
    folder.append(queries.filter(pc.is_in(first, pa.array(kept, pa.string()))))


def main() -> None:
    """Print a table, then the same as one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--noise", nargs="*", choices=sorted(planted.NOISE), default=["middle"], help="planted worlds")
    parser.add_argument("--scale", type=float, default=1.0, help="factor of the numbers of videos in planted worlds")
    parser.add_argument("--collections", nargs="*", default=[], metavar="ROOT", help="local collections with features")
    parser.add_argument("--captioned", nargs="*", type=int, default=[200], help="captioned training videos of a copy")
    parser.add_argument("--seeds", type=int, default=3, help="students per world")
    parser.add_argument(
        "--world-seed", type=int, default=0, help="seed of planted worlds, and of the choice of captions in a copy"
    )
    parser.add_argument("--preset", help="settings of the students, as for `prvr train`")
    parser.add_argument("--num-epochs", type=int, help="maximum epochs; default: the preset's")
    arguments = parser.parse_args()
    epochs = {"train": {"num_epochs": arguments.num_epochs}} if arguments.num_epochs else {}
    config, figures = resolve(epochs, arguments.preset), dict[str, float]()
    with tempfile.TemporaryDirectory() as folder, connect():
        for name, root in worlds(arguments, Path(folder)):
            found = measure(root, config, range(arguments.seeds))
            print(f"{name:24s} {'  '.join(f'{row} {found[row]:.1f}' for row in ROWS)}")
            for pair in (*map("-".join, PAIRS), "best-served"):
                print(f"  {pair:24s} {found[pair]:+.1f} ({found[f'{pair}_low']:+.1f} to {found[f'{pair}_high']:+.1f})")
            figures |= {f"{name}_{key}": round(value, 2) for key, value in found.items()}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
