"""`prvr ablate`: asks the paper's own questions of the user's data, over seeds."""

import dataclasses
import time
from typing import Any

from prvr_ray.collection import declare_spec
from prvr_ray.config import Config
from prvr_ray.stages.session import connect
from prvr_ray.stages.study import Runner, identity, open_study, run_on_seeds, seeds
from prvr_ray.stages.training_data import TrainingData
from prvr_ray.stages.trial_training import Training, check_splits, trial_worker
from prvr_ray.storage import put_json, put_json_if_absent
from prvr_ray.tuning.ablations import Question, distinct, finding, questions
from prvr_ray.tuning.comparison import compare, run_name
from prvr_ray.tuning.trial import Trial


def ablate(
    config: Config,
    *,
    root: str,
    study: str = "ablation",
    features: str = "default",
    address: str | None = None,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Train the variants of every question on every seed, or those that have not been, and compare them.

    Args:
        config: `student` and `train` are the base configuration; of `tune` the seeds, the noise and the resources.
        root: the collection.
        study: name; the files stand in ROOT/tune/<study>.
        features: name of the feature set.
        address: of a Ray cluster; None: embedded.
        dry_run: only say what would be trained.

    Returns:
        For each question its rows and what they show; exit_code is 1 where no run finished.

    Raises:
        ValueError: a study of that name with another base, nothing to train on, or runs that no node can hold.
    """
    begun = time.monotonic()
    store = open_study(root, study)
    asked = questions(config)
    trained, trained_as = distinct(asked, config)
    data = TrainingData.of(root, features)
    test_split = check_splits(data, config)
    if dry_run:
        return {"variants": len(trained), "runs": len(trained) * config.tune.num_seeds, "output": store.uri}
    declare_spec(store, {"kind": "ablation", **identity(config)})
    data = data.pinned(put_json_if_absent(store, "plan.json", data.plan), store.uri)
    with connect(address):
        worker, max_concurrent = trial_worker(config)
        runner = Runner(config, Training(data, test_split), worker, max_concurrent)
        runs = run_on_seeds(store.child("proof"), runner, trained, "ablate")
    summary = {
        "kind": "ablation",
        "questions": [_answer(question, trained_as, runs, config) for question in asked],
        "confidence": config.tune.confidence,
        "seeds": seeds(config),
    }
    put_json(store, "summary.json", summary)
    return {
        **summary,
        "seconds": round(time.monotonic() - begun, 1),
        "output": store.uri,
        "exit_code": 0 if any(run.state == "finished" for run in runs.values()) else 1,
    }


def _answer(question: Question, trained_as: dict[str, str], runs: dict[str, Trial], config: Config) -> dict[str, Any]:
    named = {
        run_name(name, seed): runs[run_name(trained_as[name], seed)]
        for name in question.variants
        for seed in seeds(config)
    }
    rows = compare(question.variants, seeds(config), named, question.reference, config.tune.confidence)
    return {
        "title": question.title,
        "reference": question.reference,
        "rows": [dataclasses.asdict(row) for row in rows],
        "finding": finding(question, {row.name: row for row in rows}),
    }
