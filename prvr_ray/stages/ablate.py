"""`prvr ablate`: asks the paper's own questions of the user's data, over seeds."""

import dataclasses
import time
from typing import Any

from prvr_ray.collection import declare_spec
from prvr_ray.config import Config
from prvr_ray.runs.training_data import TrainingData
from prvr_ray.stages.session import connect
from prvr_ray.stages.trial import Training, check_splits, check_trials, pin_data, size_trial_worker
from prvr_ray.stages.trial_runner import Runner, run_on_seeds
from prvr_ray.storage import put_json, put_json_if_absent
from prvr_ray.tuning.ablations import Question, deduplicate, list_questions, state_finding
from prvr_ray.tuning.query_ranks import read_queries_in
from prvr_ray.tuning.seed_comparison import Queries, compare, name_run
from prvr_ray.tuning.study import OLDER, check_ablation, list_seeds, open_study
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
        study: its name; its files lie in ROOT/tune/<study>.
        features: name of the feature set.
        address: of a Ray cluster; None: embedded.
        dry_run: check everything and report what would be trained; train nothing.

    Returns:
        For each question its rows and what they show; exit_code is 1 where no run finished.

    Raises:
        ValueError: a study of that name with another base, nothing to train on, or runs that no node can hold.
    """
    begun = time.monotonic()
    store = open_study(root, study)
    data = pin_data(TrainingData.of(root, features), store)
    config = data.settle(config)
    asked = list_questions(config)
    trained, trained_as = deduplicate(asked, config)
    spec = check_ablation(store, config)
    test_split = check_splits(data, config)
    check_trials(config)
    if dry_run:
        return {"variants": len(trained), "runs": len(trained) * config.tune.num_seeds, "output": store.uri}
    declare_spec(store, spec, older=OLDER)
    put_json_if_absent(store, "plan.json", data.plan)
    with connect(address):
        worker, max_concurrent = size_trial_worker(config)
        runner = Runner(config, Training(data, test_split, keeps_ranks=True), worker, max_concurrent)
        runs = run_on_seeds(store.child("proof"), runner, trained, "ablate")
    queries = read_queries_in(store.child("proof"))
    summary = {
        "kind": "ablation",
        "questions": [_answer_question(question, trained_as, runs, queries, config) for question in asked],
        "confidence": config.tune.confidence,
        "seeds": list_seeds(config),
    }
    put_json(store, "summary.json", summary)
    return {
        **summary,
        "seconds": round(time.monotonic() - begun, 1),
        "output": store.uri,
        "exit_code": 0 if any(run.state == "finished" for run in runs.values()) else 1,
    }


def _answer_question(
    question: Question, trained_as: dict[str, str], runs: dict[str, Trial], queries: Queries, config: Config
) -> dict[str, Any]:
    seeds = list_seeds(config)
    trained = {name_run(name, seed): name_run(trained_as[name], seed) for name in question.variants for seed in seeds}
    named = {name: runs[run] for name, run in trained.items()}
    rows = compare(
        question.variants,
        seeds,
        named,
        question.reference,
        config.tune.confidence,
        lambda run, split: queries(trained[run], split),
    )
    return {
        "title": question.title,
        "reference": question.reference,
        "rows": [dataclasses.asdict(row) for row in rows],
        "finding": state_finding(question, {row.name: row for row in rows}),
    }
