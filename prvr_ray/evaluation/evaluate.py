"""Ranks a split's videos for its queries, by the teacher, each student branch and their mixtures; measures moments.

Nothing is written here: `prvr_ray.stages.evaluate` runs this on one worker and stores its results.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prvr_ray import schema
from prvr_ray.collection import FeatureSet
from prvr_ray.collection.filters import matching_videos
from prvr_ray.config import EvaluateSettings, StudentSettings
from prvr_ray.devices import choose_device
from prvr_ray.evaluation.annotated import within_videos
from prvr_ray.evaluation.split import EvaluationSplit, HubBlocks, moments_in_videos, query_vectors, split_rows
from prvr_ray.evaluation.validation import MOST_QUERIES, SEED, score_windows
from prvr_ray.evaluation.verdict import compare, warn_of_student
from prvr_ray.evaluation.weights import TEACHER, ValidationScores, best_windows, choose_weights
from prvr_ray.index.student_encoder import Windowing
from prvr_ray.retrieval.hubness import hubness, sample_queries
from prvr_ray.retrieval.metrics import moment_recall, summarize, summarize_by_ratio
from prvr_ray.retrieval.ranking import rank_by_counting
from prvr_ray.runs.chosen_weights import read_choice
from prvr_ray.runs.run import RunFolder
from prvr_ray.student.model import Student

Evaluation = dict[str, Any]
Json = dict[str, Any]
Query = dict[str, Any]
Ranks = list[np.ndarray]
Asked = tuple[list[np.ndarray], EvaluationSplit, list[list[str]]]  # vectors of queries, videos, relevant ones per query


@dataclass(frozen=True)
class EvaluationJob:
    """Everything that the worker needs; the split is an argument of `evaluate_split`.

    filters: rank only videos of the reported split that match all of these.
    """

    settings: EvaluateSettings
    student: StudentSettings
    features: FeatureSet
    run: RunFolder
    windowing: Windowing
    filters: tuple[str, ...] = ()

    def blocks(self, split: str, student: Any, device: str, filters: Sequence[str] = ()) -> EvaluationSplit:
        """Return the split's videos that match all filters. Raises ValueError if none of them has features."""
        rows = split_rows(self.features, split)
        if filters:
            matching = matching_videos(self.features.collection.videos(), filters)
            rows = rows.filter(pc.is_in(rows["video_id"], matching))
        if not len(rows):
            which = f" that matches {' and '.join(filters)}" if filters else ""
            raise ValueError(f"split {split!r} has no video with features{which}")
        return EvaluationSplit(self.features, rows, student, self.windowing, device)


def evaluate_split(
    job: EvaluationJob, split: str, validation: str, train: str
) -> tuple[Evaluation, pa.Table, Json | None]:
    """Rank the split's queries under every mixture of the branches.

    Args:
        split: the split to report. validation: the split to choose weights on. train: the split whose queries measure
            hubness.

    Returns:
        What `prvr evaluate` prints, the ranks of single queries, and the weights if they were chosen in this call.
    """
    device = choose_device(job.settings.evaluator_gpus)
    student = job.run.load_student().to(device)
    blocks = job.blocks(split, student, device, job.filters)
    queries, num_excluded = _select_queries(job.features, split, blocks)
    vectors = query_vectors(job.features, queries, student, device)
    weights = own_weights(job.student)
    made = choose_on_validation(job, validation, student, device) if job.settings.choose_weights else None
    choice = made or read_choice(job.run)
    weightings = _weightings(list(student.branches), weights, job.settings.teacher_weight)
    relevant = [query["video_ids"] for query in queries]
    ranks = rank_by_counting(vectors, blocks, relevant, weightings, job.settings.mode)
    if choice:
        ranks |= _chosen_ranks(job, choice["weights"], (vectors, blocks, relevant), train)
    annotated = _annotated(queries, set(blocks.rows["video_id"].to_pylist()))
    annotated, outside = within_videos(annotated, [query["query_id"] for query in queries], blocks.rows)
    asked: dict[str, list[int]] = {}
    for place, (video_id, _) in annotated.items():
        asked.setdefault(video_id, []).append(place)
    weighted = [(weights[name], rows_QD) for name, rows_QD in zip(student.branches, vectors, strict=False)]
    spans_Q2, durations = moments_in_videos(weighted, blocks, asked, job.settings.moment_threshold)
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
        "served": "fused",
        "queries": len(queries),
        "excluded": num_excluded,
        **({"filters": list(job.filters)} if job.filters else {}),
        **outside,
    }
    if choice:
        evaluation["chosen"] = {name: choice[name] for name in ("weights", "teacher_fraction", "reason")}
    clusters = [min(query["video_ids"]) for query in queries]
    if warning := warn_of_student(compare(ranks["fused"], ranks["teacher"], clusters), split):
        evaluation["warning"] = warning
    return evaluation, _ranks_table(queries, ranks, ratios), made


def _select_queries(features: FeatureSet, split: str, blocks: EvaluationSplit) -> tuple[list[Query], int]:
    """Return the queries that have a relevant video in the blocks, and how many queries have none.

    Relevant videos without features are dropped from a query's list, as in validation during training.
    """
    videos = set(blocks.rows["video_id"].to_pylist())
    queries = features.collection.queries(split).to_pylist()
    found = [{**query, "video_ids": [v for v in query["video_ids"] or [] if v in videos]} for query in queries]
    kept = [query for query in found if query["video_ids"]]
    if not kept:
        raise ValueError(f"split {split!r} has no query whose video has features")
    return kept, len(queries) - len(kept)


def own_weights(student: StudentSettings) -> dict[str, float]:
    """Return the branch weights that a run was trained with."""
    known = {"inheritance": student.inheritance_weight, "exploration": student.exploration_weight}
    return {name: known[name] for name in student.branches}


def _weightings(branches: list[str], weights: dict[str, float], teacher_weight: float) -> dict[str, list[float]]:
    """Map each row of the evaluation to the weights of all branches, the teacher's last."""
    places = [*branches, "teacher"]
    alone = {name: [float(name == place) for place in places] for name in places}
    fused = [weights[name] for name in branches]
    joined = [*((1 - teacher_weight) * weight for weight in fused), teacher_weight]
    return {"teacher": alone.pop("teacher"), **alone, "fused": [*fused, 0.0], "teacher+student": joined}


def choose_on_validation(job: EvaluationJob, validation: str, student: Student, device: str) -> Json:
    """Choose the weights of all branches, the teacher's among them, on the validation split.

    Returns:
        JSON values: those of `Choice.to_json`, and the student, features and split behind the choice.
    """
    blocks = job.blocks(validation, student, device)
    queries, _ = _select_queries(job.features, validation, blocks)
    ids = sample_queries([query["query_id"] for query in queries], MOST_QUERIES, SEED)
    by_id = {query["query_id"]: query for query in queries}
    asked = [by_id[query_id] for query_id in ids]
    parts, video_of_window = score_windows(query_vectors(job.features, asked, student, device), blocks)
    place, video_of_window_W = _numbered(video_of_window)
    scores = ValidationScores(
        dict(zip([*student.branches, TEACHER], parts, strict=True)),
        video_of_window_W,
        [[place[video_id] for video_id in query["video_ids"] if video_id in place] for query in asked],
    )
    return {
        **choose_weights(scores, own_weights(job.student)).to_json(),
        "split": validation,
        "features": job.features.store.uri.rpartition("/")[2],
        "weights_sha256": job.run.best_weights()["weights_sha256"],
    }


def _chosen_ranks(job: EvaluationJob, weights: dict[str, float], asked: Asked, train: str) -> dict[str, Ranks]:
    """Compute the ranks of the rows `chosen` and `chosen+hubness`."""
    vectors, blocks, relevant = asked
    names = [*blocks.student.branches, TEACHER]
    mixture = [weights[name] for name in names]
    hubs = HubBlocks(blocks, _hubness(job, mixture, blocks, train))
    ones_Q1 = np.ones((len(relevant), 1), np.float32)
    weightings = {"chosen": [*mixture, 0.0], "chosen+hubness": [*mixture, -job.settings.hubness_fraction]}
    return rank_by_counting([*vectors, ones_Q1], hubs, relevant, weightings, job.settings.mode)


def _hubness(job: EvaluationJob, mixture: list[float], blocks: EvaluationSplit, train: str) -> dict[str, float]:
    """Return the hubness of each video of the blocks among the training queries; 0 if there are none."""
    rows = job.features.collection.queries(train)
    encoded = job.features.match_queries(rows).rows["query_id"].to_pylist()
    ids = sample_queries(encoded, MOST_QUERIES, SEED)
    if not ids:
        return dict.fromkeys(blocks.rows["video_id"].to_pylist(), 0.0)
    asked = rows.filter(pc.is_in(rows["query_id"], pa.array(ids, pa.string()))).to_pylist()
    vectors = query_vectors(job.features, asked, blocks.student, blocks.device)
    parts, video_of_window = score_windows(vectors, blocks)
    fused_QW = sum(weight * scores_QW for weight, scores_QW in zip(mixture, parts, strict=True))
    place, video_of_window_W = _numbered(video_of_window)
    scores_QV = best_windows(np.asarray(fused_QW), video_of_window_W)
    return dict(zip(place, hubness(scores_QV, job.settings.hubness_neighbours).tolist(), strict=True))


def _numbered(video_of_window: list[str]) -> tuple[dict[str, int], np.ndarray]:
    """Number the videos from 0 in order of arrival: video -> number, and the number of each window's video, (W,)."""
    place = {video_id: number for number, video_id in enumerate(dict.fromkeys(video_of_window))}
    return place, np.array([place[video_id] for video_id in video_of_window])


def _annotated(queries: list[Query], videos: set[str]) -> dict[int, tuple[str, np.ndarray]]:
    """Map a query's index to the video of its first annotated moment, and its moments (start_s, end_s) there."""
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
