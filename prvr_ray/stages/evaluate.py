"""`prvr evaluate`: recall of a run on a split, for the teacher alone, each branch, their fusion, and all together.

One worker streams the split through the index's own windowing, so that what is reported is what is served. Ranks come
from counting: no (queries, videos) matrix is held.

Shapes: Q queries, D features, B branches.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from prvr_ray import schema
from prvr_ray.collection import FeatureSet, existing_collection
from prvr_ray.config import EvaluateSettings, IndexSettings, StudentSettings
from prvr_ray.retrieval.counting import rank_by_counting
from prvr_ray.retrieval.metrics import moment_recall, summarize, summarize_by_ratio
from prvr_ray.runs import RunFolder, open_run
from prvr_ray.stages.devices import device_of
from prvr_ray.stages.resources import Worker, require
from prvr_ray.stages.session import connect
from prvr_ray.stages.split_blocks import SplitBlocks, find_moments, query_vectors, split_rows
from prvr_ray.stages.student_vectors import Windowing
from prvr_ray.storage import put_json, table_to_bytes

Evaluation = dict[str, Any]
Query = dict[str, Any]
_WEIGHT_STEPS = 20


def evaluate(
    settings: EvaluateSettings,
    windowing: IndexSettings,
    *,
    root: str,
    run: str,
    split: str,
    address: str | None = None,
) -> Evaluation:
    """Rank every query of a split among the split's videos.

    Args:
        windowing: how long videos are cut, as for `prvr index`.
        split: train, val, test or any other.

    Returns:
        What DESIGN's `prvr evaluate` prints, with `by_ratio`, `moments`, `weights` and `excluded` added. It is also
        put below runs/<run>/evaluations, with the ranks of single queries beside it.

    Raises:
        ValueError: nothing to evaluate, or a protocol that does not fit how the run was trained.
    """
    collection, folder = existing_collection(root), open_run(root, run)
    plan, validation = folder.plan(), folder.config().train.validation_split
    if plan is None:
        raise ValueError(f"run {run!r} has not begun; `prvr train` makes it")
    _check_protocol(settings.protocol, split, validation)
    features = collection.features(plan["features"])
    student = folder.config().student
    frames = windowing.window_frames or student.max_frames
    job = _Job(settings, student, features, folder, Windowing(windowing.windowing, frames, windowing.overlap_frames))
    with connect(address):
        worker = Worker("evaluator", settings.evaluator_cpus, settings.evaluator_gpus)
        require(worker)
        task = ray.remote(_evaluate).options(**worker.options)
        evaluation, ranks = ray.get(task.remote(job, split, validation))
    store, name = folder.store.child("evaluations"), f"{split}-{settings.protocol}"
    store.put(f"{name}.parquet", table_to_bytes(ranks))
    put_json(store, f"{name}.json", evaluation)
    return {**evaluation, "output": f"{store.uri}/{name}.json"}


def _check_protocol(protocol: str, split: str, validation: str) -> None:
    if protocol == "paper" and split != validation:
        raise ValueError(
            f"protocol paper reports the split that chose the checkpoint, which is {validation!r} for this run; "
            f"train with --train.validation_split {split}, or use --protocol held-out"
        )
    if protocol == "held-out" and split == validation:
        raise ValueError(f"split {split!r} chose this run's checkpoint: use --protocol paper, or another split")


@dataclass(frozen=True)
class _Job:
    """What the worker is told."""

    settings: EvaluateSettings
    student: StudentSettings
    features: FeatureSet
    run: RunFolder
    windowing: Windowing

    def blocks(self, split: str, student: Any, device: str) -> SplitBlocks:
        """The split's videos; none is an error."""
        rows = split_rows(self.features, split)
        if not len(rows):
            raise ValueError(f"split {split!r} has no video with features")
        return SplitBlocks(self.features, rows, student, self.windowing, device)


def _evaluate(job: _Job, split: str, validation: str) -> tuple[Evaluation, pa.Table]:
    device = device_of(job.settings.evaluator_gpus)
    student = job.run.load_student().to(device)
    blocks = job.blocks(split, student, device)
    queries, num_excluded = _queries(job.features, split, blocks)
    vectors = query_vectors(job.features, [query["query_id"] for query in queries], student, device)
    weights = _branch_weights(job.student)
    if job.settings.choose_weights:
        weights = _chosen_weights(job, validation, student, device)
    weightings = _weightings(list(student.branches), weights, job.settings.teacher_weight)
    relevant = [query["video_ids"] for query in queries]
    ranks = rank_by_counting(vectors, blocks, relevant, weightings, job.settings.mode)
    annotated = _annotated(queries, set(blocks.rows["video_id"].to_pylist()))
    asked: dict[str, list[int]] = {}
    for place, (video_id, _) in annotated.items():
        asked.setdefault(video_id, []).append(place)
    weighted = [(weights[name], rows_QD) for name, rows_QD in zip(student.branches, vectors, strict=False)]
    spans_Q2, durations = find_moments(weighted, blocks, asked, job.settings.moment_threshold)
    ratios = np.full(len(queries), np.nan)
    for place, (video_id, moments) in annotated.items():
        ratios[place] = np.minimum(1.0, (moments[0, 1] - moments[0, 0]) / durations[video_id])  # NaN stays NaN
    timed = {place: moments for place, (video_id, moments) in annotated.items() if np.isfinite(durations[video_id])}
    evaluation: Evaluation = {
        "split": split,
        "protocol": job.settings.protocol,
        "rows": {name: summarize(of_row) for name, of_row in ranks.items()},
        "ratio_edges": job.settings.ratio_edges,
        "by_ratio": summarize_by_ratio(ranks["fused"], ratios, job.settings.ratio_edges),
        "moments": moment_recall(spans_Q2[list(timed)], list(timed.values()), job.settings.iou_thresholds),
        "weights": weights,
        "queries": len(queries),
        "excluded": num_excluded,
    }
    if evaluation["rows"]["fused"]["sumr"] < evaluation["rows"]["teacher"]["sumr"]:
        evaluation["warning"] = "the student is below its teacher on this split"
    return evaluation, _ranks_table(queries, ranks, ratios)


def _queries(features: FeatureSet, split: str, blocks: SplitBlocks) -> tuple[list[Query], int]:
    """The split's queries with a relevant video among the blocks', and how many have none there."""
    videos = set(blocks.rows["video_id"].to_pylist())
    queries = features.collection.queries(split).to_pylist()
    kept = [query for query in queries if videos.intersection(query["video_ids"])]
    if not kept:
        raise ValueError(f"split {split!r} has no query whose video has features")
    return kept, len(queries) - len(kept)


def _branch_weights(student: StudentSettings) -> dict[str, float]:
    known = {"inheritance": student.inheritance_weight, "exploration": student.exploration_weight}
    return {name: known[name] for name in student.branches}


def _weightings(branches: list[str], weights: dict[str, float], teacher_weight: float) -> dict[str, list[float]]:
    """Row of the evaluation -> the weight of every branch, the teacher's last."""
    places = [*branches, "teacher"]
    alone = {name: [float(name == place) for place in places] for name in places}
    fused = [weights[name] for name in branches]
    joined = [*((1 - teacher_weight) * weight for weight in fused), teacher_weight]
    return {"teacher": alone.pop("teacher"), **alone, "fused": [*fused, 0.0], "teacher+student": joined}


def _chosen_weights(job: _Job, validation: str, student: Any, device: str) -> dict[str, float]:
    """The branch weights with the best SumR on the validation split, from one set of products."""
    branches = list(student.branches)
    if len(branches) < 2:
        return {branches[0]: 1.0}
    blocks = job.blocks(validation, student, device)
    queries, _ = _queries(job.features, validation, blocks)
    vectors = query_vectors(job.features, [query["query_id"] for query in queries], student, device)
    grid = {f"{step / _WEIGHT_STEPS:.2f}": step / _WEIGHT_STEPS for step in range(_WEIGHT_STEPS + 1)}
    weightings = {name: [share, 1 - share, 0.0] for name, share in grid.items()}
    ranks = rank_by_counting(vectors, blocks, [query["video_ids"] for query in queries], weightings, job.settings.mode)
    best = max(ranks, key=lambda name: summarize(ranks[name])["sumr"])
    return {branches[0]: grid[best], branches[1]: round(1 - grid[best], 4)}


def _annotated(queries: list[Query], videos: set[str]) -> dict[int, tuple[str, np.ndarray]]:
    """Place of a query -> the video of its first annotated moment, and the moments (start_s, end_s) there."""
    found = {}
    for place, query in enumerate(queries):
        moments = [moment for moment in query["moments"] or [] if moment["video_id"] in videos]
        if moments:
            video_id = moments[0]["video_id"]
            spans = [(m["start_s"], m["end_s"]) for m in moments if m["video_id"] == video_id]
            found[place] = (video_id, np.array(spans))
    return found


def _ranks_table(queries: list[Query], ranks: dict[str, list[np.ndarray]], ratios: np.ndarray) -> pa.Table:
    columns = [
        {"query_id": query["query_id"], "row": row, "ranks": ranks_q.tolist(), "moment_ratio": ratio}
        for row, of_row in ranks.items()
        for query, ranks_q, ratio in zip(queries, of_row, ratios.tolist(), strict=True)
    ]
    table = pa.Table.from_pylist(columns, schema=schema.QUERY_RANKS)
    known = pa.compute.if_else(pa.compute.is_nan(table["moment_ratio"]), None, table["moment_ratio"])
    return table.set_column(3, schema.QUERY_RANKS.field(3), known)
