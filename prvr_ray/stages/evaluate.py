"""`prvr evaluate`: recall of a run on a split, beside its teacher's."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import ray

from prvr_ray.collection import existing_collection
from prvr_ray.config import EvaluateSettings, IndexSettings, TrainSettings
from prvr_ray.evaluation.evaluate import Evaluation, EvaluationJob, evaluate_split
from prvr_ray.index.student_encoder import Windowing
from prvr_ray.runs.chosen_weights import keep_choice
from prvr_ray.runs.encoders import check_encoders
from prvr_ray.runs.run import RunFolder, open_run
from prvr_ray.stages.resources import Worker, require
from prvr_ray.stages.session import connect
from prvr_ray.storage import put_json, table_to_bytes


def evaluate(
    settings: EvaluateSettings,
    windowing: IndexSettings,
    *,
    root: str,
    run: str,
    split: str,
    address: str | None = None,
    filter: Sequence[str] = (),
) -> Evaluation:
    """Rank every query of a split among the split's videos.

    Args:
        windowing: how long videos are cut into windows, as for `prvr index`.
        split: name of the split: train, val, test or any other.
        filter: rank only videos that match all of these; queries without a relevant video among them are excluded.

    Returns:
        What DESIGN's `prvr evaluate` prints, with `by_ratio`, `moments`, `weights` and `excluded` added. It is also
        put below runs/<run>/evaluations, with the ranks of single queries beside it; where that fails, `not_kept` says
        why and exit_code is 1. With `evaluate.choose_weights` the
        weights that validation chooses are kept in runs/<run>/weights; from then on there are the rows `chosen` and
        `chosen+hubness`.

    Raises:
        ValueError: nothing to evaluate, or a protocol that contradicts how the run was trained.
    """
    collection, folder = existing_collection(root), open_run(root, run)
    plan, trained = folder.plan(), folder.config().train
    train, validation = trained.train_split, trained.validation_split
    if plan is None:
        raise ValueError(f"run {run!r} has not begun; `prvr train` makes it")
    _check_protocol(settings.protocol, split, folder.config().train)
    features = collection.features(plan["features"])
    where = f"features/{plan['features']} of {collection.store.uri}"
    note = check_encoders(plan.get("encoders"), features.spec(), f"run {run!r}", where)
    student = folder.config().student
    frames = windowing.window_frames or student.max_frames
    job = EvaluationJob(
        settings,
        student,
        features,
        folder,
        Windowing(windowing.windowing, frames, windowing.overlap_frames),
        tuple(filter),
    )
    with connect(address):
        worker = Worker("evaluator", settings.evaluator_cpus, settings.evaluator_gpus)
        require(worker)
        task = ray.remote(evaluate_split).options(**worker.options)
        evaluation, ranks, choice = ray.get(task.remote(job, split, validation, train))
    name = f"{split}-{settings.protocol}{_suffix(filter)}"
    return {
        **evaluation,
        **({"note": note} if note else {}),
        **_put_results(folder, name, evaluation, ranks, choice),
    }


def _put_results(
    folder: RunFolder, name: str, evaluation: Evaluation, ranks: pa.Table, choice: dict[str, Any] | None
) -> dict[str, Any]:
    """Put what was found below the run; for the summary: `output`, or `not_kept` and exit_code 1 where that fails.

    The figures took minutes to compute, so a ROOT that may only be read must not hide them.
    """
    store = folder.store.child("evaluations")
    try:
        if choice:
            keep_choice(folder, choice)
        store.put(f"{name}.parquet", table_to_bytes(ranks))
        put_json(store, f"{name}.json", evaluation)
    except OSError as error:
        return {"not_kept": f"this evaluation could not be kept in {store.uri}: {error}", "exit_code": 1}
    return {"output": f"{store.uri}/{name}.json"}


def _suffix(filters: Sequence[str]) -> str:
    """Keep a filtered evaluation beside the one of the whole split, which the report shows."""
    return f"-{hashlib.sha256(json.dumps(list(filters)).encode()).hexdigest()[:12]}" if filters else ""


def _check_protocol(protocol: str, split: str, trained: TrainSettings) -> None:
    validation = trained.validation_split
    if protocol == "train":
        if split != trained.train_split:
            raise ValueError(f"protocol train reports the split that was trained on, {trained.train_split!r}")
        return
    if split == trained.train_split:
        raise ValueError(
            f"the run was trained on split {split!r}, so it is not held out: use another split, or --protocol train, "
            f"which says what it is"
        )
    if protocol == "paper" and split != validation:
        raise ValueError(
            f"protocol paper reports the split that chose the checkpoint, which is {validation!r} for this run; "
            f"train with --train.validation_split {split}, or use --protocol held-out"
        )
    if protocol == "held-out" and split == validation:
        raise ValueError(f"split {split!r} chose this run's checkpoint: use --protocol paper, or another split")
