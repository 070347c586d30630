"""The sub-commands of `prvr`: for each its own flags, the settings that it takes, and the stage that does the work.

A stage is imported when its command runs, not before: `prvr --help` loads neither torch nor ray.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from jsonargparse import Namespace

from prvr_ray import terminal
from prvr_ray.config import Config
from prvr_ray.corpus.annotations import COLUMNS, LAYOUTS

Summary = dict[str, Any]
Flags = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Command:
    """A sub-command.

    Attributes:
        help: one line.
        run: does the work; `exit_code` in what it returns is the command's.
        options: flags of its own: name -> keyword arguments of `add_argument`.
        sections: of the settings; each field becomes a `--section.field` option.
        short: settings that also have a flat spelling, such as --fps for --ingest.fps.
        show: prints what `run` returned.
        notes: stand below the options in the help, line by line.
    """

    help: str
    run: Callable[[Namespace, Config], Summary]
    options: Flags = field(default_factory=dict)
    sections: tuple[str, ...] = ()
    short: tuple[str, ...] = ()
    preset: str | None = None
    show: Callable[[Summary], None] = terminal.show_summary
    notes: str = ""


ROOT: Flags = {"--root": {"required": True, "help": "the collection: a local folder or s3://bucket/prefix"}}
ADDRESS: Flags = {"--address": {"help": "a Ray cluster; default: Ray embedded in this process"}}
DRY_RUN: Flags = {"--dry-run": {"action": "store_true", "help": "say what would be done, and how much"}}
FEATURES: Flags = {"--features": {"default": "default", "help": "feature set"}}
RUN: Flags = {"--run": {"required": True, "help": "name of the training run"}}
SUBMIT: Flags = {
    "--address": {"help": "the cluster's dashboard, http://HEAD:8265"},
    "--working-dir": {"metavar": "DIR", "help": "upload this folder and run its code; default: the image's"},
    "--no-wait": {"action": "store_true", "help": "do not follow the log"},
    "--status": {"metavar": "ID", "help": "say how a job is, instead"},
    "--stop": {"metavar": "ID", "help": "end a job, instead"},
}
JOB: Flags = {**ROOT, **ADDRESS, **DRY_RUN}


def _required(flag: str, text: str) -> Flags:
    return {flag: {"required": True, "help": text}}


def _import(args: Namespace, config: Config) -> Summary:
    from prvr_ray.stages.imports import import_collection

    return import_collection(args.layout, args.source, args.root, name=args.name)


def _ingest(args: Namespace, config: Config) -> Summary:
    from prvr_ray.stages.ingest import ingest

    return ingest(
        config.ingest,
        root=args.root,
        videos=args.videos,
        features=args.features,
        address=args.address,
        dry_run=args.dry_run,
    )


def _train(args: Namespace, config: Config) -> Summary:
    from prvr_ray.stages.train import train

    return train(
        config, root=args.root, run=args.run, features=args.features, address=args.address, dry_run=args.dry_run
    )


def _tune(args: Namespace, config: Config) -> Summary:
    from prvr_ray.stages.tune import tune

    return tune(
        config, root=args.root, study=args.study, features=args.features, address=args.address, dry_run=args.dry_run
    )


def _ablate(args: Namespace, config: Config) -> Summary:
    from prvr_ray.stages.ablate import ablate

    return ablate(
        config, root=args.root, study=args.study, features=args.features, address=args.address, dry_run=args.dry_run
    )


def _index(args: Namespace, config: Config) -> Summary:
    from prvr_ray.stages.index import index

    return index(
        config.index, root=args.root, run=args.run, index=args.index, address=args.address, dry_run=args.dry_run
    )


def _score(args: Namespace, config: Config) -> Summary:
    from prvr_ray.stages.score import score

    return score(
        config.score,
        root=args.root,
        index=args.index,
        queries=args.queries,
        output=args.output,
        address=args.address,
        allow_missing=args.allow_missing,
        dry_run=args.dry_run,
    )


def _evaluate(args: Namespace, config: Config) -> Summary:
    from prvr_ray.stages.evaluate import evaluate

    return evaluate(config.evaluate, config.index, root=args.root, run=args.run, split=args.split, address=args.address)


def _search(args: Namespace, config: Config) -> Summary:
    from prvr_ray.api import open_root, search

    if not args.text.strip():
        raise ValueError("search needs a sentence, such as 'a person opens a fridge'")
    found = search(open_root(args.root), args.index, args.text, args.top_k)
    names = ("video_id", "score", "start_s", "end_s", "peak_s")
    answers = [{name: getattr(answer, name) for name in names} for answer in found]
    return {"query": args.text, "answers": [{"rank": rank, **answer} for rank, answer in enumerate(answers, start=1)]}


def _demo(args: Namespace, config: Config) -> Summary:
    from prvr_ray.stages.demo import demo

    return demo(config, root=args.root)


def _submit(args: Namespace, config: Config) -> Summary:
    from prvr_ray.stages.jobs import job_status, stop_job, submit

    own, job = _own_flags(args.job)
    given = {**args.as_dict(), **own}
    if not given["address"]:
        raise ValueError("submit needs the dashboard's --address, such as http://HEAD:8265")
    if given["status"] or given["stop"]:
        return (job_status if given["status"] else stop_job)(given["status"] or given["stop"], address=given["address"])
    if not job or job[0] not in COMMANDS:
        raise ValueError(f"submit needs a command to run, one of {', '.join(COMMANDS)}, and its options")
    return submit(job, address=given["address"], working_dir=given["working_dir"], wait=not given["no_wait"])


def _own_flags(job: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Split what follows the job's command: options of `submit` itself may stand there too."""
    parser = argparse.ArgumentParser(allow_abbrev=False, argument_default=argparse.SUPPRESS, add_help=False)
    for name, keywords in SUBMIT.items():
        parser.add_argument(name, **keywords)
    own, rest = parser.parse_known_args(job)
    return vars(own), rest


def _doctor(args: Namespace, config: Config) -> Summary:
    from prvr_ray.stages.doctor import doctor

    return doctor(args.address, args.root, args.encoder)


def _report(args: Namespace, config: Config) -> Summary:
    from prvr_ray.report.build import report

    return report(
        config.report,
        root=args.root,
        run=args.run,
        split=args.split,
        protocol=args.protocol,
        index=args.index,
        study_name=args.study,
        compare=args.compare,
        name=args.name,
    )


def _status(args: Namespace, config: Config) -> Summary:
    from prvr_ray.maintenance import status

    return status(args.root)


def _compact(args: Namespace, config: Config) -> Summary:
    from prvr_ray.maintenance import compact

    return compact(args.root)


def _gc(args: Namespace, config: Config) -> Summary:
    from prvr_ray.maintenance import gc

    return gc(args.root, retention_days=args.retention_days)


def _remove(args: Namespace, config: Config) -> Summary:
    from prvr_ray.maintenance import remove

    return remove(args.root, args.video_id)


COMMANDS: dict[str, Command] = {
    "import": Command(
        "captions, moments or released features into a collection",
        _import,
        {
            "--layout": {
                "required": True,
                "choices": ["released", *LAYOUTS],
                "help": "format of the source",
            },
            **_required("--source", "file, folder, or URI of either; released: holds FeatureData/ and TextData/"),
            "--name": {
                "help": "released: the dataset, where the source holds several; else: the beginning of the ids that "
                "queries get where a file gives none"
            },
            **ROOT,
        },
        notes=COLUMNS,
    ),
    "ingest": Command(
        "videos and captions to features",
        _ingest,
        {
            **_required(
                "--videos",
                "a folder, an s3:// prefix, or a manifest: csv, jsonl or parquet with `uri`, perhaps `video_id`",
            ),
            **FEATURES,
            **JOB,
        },
        sections=("ingest",),
        short=tuple(
            f"ingest.{name}" for name in ("encoder", "student_encoder", "fps", "max_failure_share", "retry", "limit")
        ),
    ),
    "train": Command(
        "distil a student from the teacher",
        _train,
        {**RUN, **FEATURES, **JOB},
        sections=("student", "train"),
        short=("train.num_workers",),
    ),
    "tune": Command(
        "search settings, and confirm the best on several seeds",
        _tune,
        {**_required("--study", "name of the study"), **FEATURES, **JOB},
        sections=("student", "train", "tune"),
        show=terminal.show_study,
    ),
    "ablate": Command(
        "answer the paper's own questions on your data",
        _ablate,
        {"--study": {"default": "ablation", "help": "name of the study"}, **FEATURES, **JOB},
        sections=("student", "train", "tune"),
        show=terminal.show_ablation,
    ),
    "index": Command(
        "encode all videos with a run's student",
        _index,
        {**RUN, **_required("--index", "name of the index"), **JOB},
        sections=("index",),
    ),
    "score": Command(
        "exact top-k videos, with moments, for many queries",
        _score,
        {
            **_required("--index", "name of the index"),
            **_required(
                "--queries",
                "a split; a txt file of a text a line; csv, jsonl or parquet with `text`; or - for standard input",
            ),
            **_required("--output", "name of the scores"),
            "--allow-missing": {"action": "store_true", "help": "go on without lost or damaged shards, and say so"},
            **JOB,
        },
        sections=("score",),
        short=("score.top_k", "score.mode"),
    ),
    "search": Command(
        "the best videos for one sentence, each with its moment",
        _search,
        {
            "text": {"help": "what to look for"},
            **_required("--index", "name of the index"),
            "--top-k": {"type": int, "default": 10, "help": "videos to show"},
            **ROOT,
        },
        show=terminal.show_answers,
    ),
    "evaluate": Command(
        "recall of a run on a split, beside its teacher",
        _evaluate,
        {**RUN, **_required("--split", "whose queries and videos are ranked"), **ROOT, **ADDRESS},
        sections=("evaluate", "index"),
        short=("evaluate.protocol",),
        show=terminal.show_evaluation,
    ),
    "demo": Command(
        "render a small world and run every stage on it",
        _demo,
        {"--root": {"default": "demo-root", "help": "a local folder"}},
        sections=("demo",),
        preset="demo",
        show=terminal.show_demo,
    ),
    "submit": Command(
        "run one of these commands as a job on a cluster",
        _submit,
        {"job": {"nargs": argparse.REMAINDER, "help": "a command and its options"}, **SUBMIT},
    ),
    "doctor": Command(
        "check a cluster and its storage before hours are spent on them",
        _doctor,
        {
            **ROOT,
            **ADDRESS,
            "--encoder": {"default": "", "help": "MODEL:PRETRAINED whose weights every node must have"},
        },
        show=terminal.show_checks,
    ),
    "report": Command(
        "one HTML page about a run: figures, failures, answers to look at",
        _report,
        {
            **RUN,
            "--split": {"default": "test", "help": "of the evaluation to show"},
            "--protocol": {"default": "held-out", "choices": ["held-out", "paper"], "help": "of that evaluation"},
            "--index": {"default": "", "help": "index that the answers come from; default: the run's only one"},
            "--study": {"default": "", "help": "search study to show; default: the only one"},
            "--compare": {"nargs": "+", "default": [], "metavar": "RUN", "help": "runs to put side by side"},
            "--name": {"default": "", "help": "name of the report; default: the run's"},
            **ROOT,
        },
        sections=("report",),
    ),
    "status": Command("what stands in a collection", _status, ROOT),
    "compact": Command("put larger, sorted shards in place of many small ones", _compact, ROOT),
    "gc": Command(
        "delete replaced shards",
        _gc,
        {**ROOT, "--retention-days": {"type": float, "default": 7.0, "help": "keep what was replaced this recently"}},
    ),
    "remove": Command(
        "take a video out of every answer", _remove, {"video_id": {"help": "as `prvr status` counts it"}, **ROOT}
    ),
}
