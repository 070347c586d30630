"""The commands of `prvr`: one row each, with the command's own options, its settings and the function to call.

A function is imported only when its command runs, so `prvr --help` loads neither torch nor ray.
"""

import argparse
import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from prvr_ray.annotations.captions import COLUMNS, LAYOUTS
from prvr_ray.cli import tables
from prvr_ray.config import Config

Summary = dict[str, Any]
Options = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Command:
    """A command of `prvr`.

    Attributes:
        help: one line.
        call: the function to call, or its name as `module:function` below prvr_ray. Its arguments are the settings
            named in `passes`, then each of the command's own options by name. If the summary that it returns has an
            `exit_code`, the command exits with it.
        options: the command's own options: name -> keyword arguments of `add_argument`.
        passes: settings to pass: `config` for all of them, or names of sections.
        sections: sections whose fields become options, `--section.field`.
        short: settings that also have a short option, such as --fps for --ingest.fps.
        preset: the preset to start from unless `--preset` names another.
        show: prints the summary that `call` returned.
        notes: lines to print below the options in the help.
    """

    help: str
    call: str | Callable[..., Summary]
    options: Options = field(default_factory=dict)
    passes: tuple[str, ...] = ()
    sections: tuple[str, ...] = ()
    short: tuple[str, ...] = ()
    preset: str | None = None
    show: Callable[[Summary], None] = tables.show_summary
    notes: str = ""

    def run(self, arguments: dict[str, Any], config: Config) -> Summary:
        """Call the function. arguments: those of the command line, by the names that `parameter_of` gives."""
        function = self.function()
        settings = [config if name == "config" else getattr(config, name) for name in self.passes]
        return function(*settings, **{name: arguments[name] for name in map(parameter_of, self.options)})

    def function(self) -> Callable[..., Summary]:
        """Import the function if `call` is its name."""
        if callable(self.call):
            return self.call
        module, _, name = self.call.partition(":")
        return getattr(importlib.import_module(f"prvr_ray.{module}"), name)


def parameter_of(option: str) -> str:
    """The function parameter that an option sets: top_k for --top-k."""
    return option.removeprefix("--").replace("-", "_")


def _search(text: str, index: str, top_k: int, encoder: str, filter: list[str], root: str) -> Summary:
    from prvr_ray.notebook import find_cut_text, open_root, search

    found = search(root, index, text, top_k, encoder=encoder, filter=filter)
    names = ("video_id", "score", "start_s", "end_s", "peak_s")
    answers = [{name: getattr(answer, name) for name in names} for answer in found]
    answers = [{"rank": rank, **answer} for rank, answer in enumerate(answers, start=1)]
    warning = find_cut_text(open_root(root), index, text)
    return {"query": text, "answers": answers, **({"warning": warning} if warning else {})}


def _submit(job: list[str], **given: Any) -> Summary:
    from prvr_ray.stages.submit import get_job_status, stop_job, submit

    own, job = _own_options(job)
    given |= own
    if not given["address"]:
        raise ValueError("submit needs --address, the address of the dashboard, such as http://HEAD:8265")
    if given["status"] or given["stop"]:
        return (get_job_status if given["status"] else stop_job)(
            given["status"] or given["stop"], address=given["address"]
        )
    if not job or job[0] not in COMMANDS:
        raise ValueError(f"submit needs a command to run, one of {', '.join(COMMANDS)}, and its options")
    return submit(job, address=given["address"], working_dir=given["working_dir"], wait=not given["no_wait"])


def _own_options(job: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Split the options of `submit` itself, which may also follow the job's command, from those of the job."""
    parser = argparse.ArgumentParser(allow_abbrev=False, argument_default=argparse.SUPPRESS, add_help=False)
    for name, keywords in SUBMIT.items():
        parser.add_argument(name, **keywords)
    own, rest = parser.parse_known_args(job)
    return vars(own), rest


def _required(option: str, text: str) -> Options:
    return {option: {"required": True, "help": text}}


ROOT = _required("--root", "the collection: a local folder or s3://bucket/prefix")
ADDRESS: Options = {"--address": {"help": "address of a Ray cluster; without it, Ray runs in this process"}}
DRY_RUN: Options = {"--dry-run": {"action": "store_true", "help": "only print what would be done"}}
FEATURES: Options = {"--features": {"default": "default", "help": "name of the feature set"}}
RUN = _required("--run", "name of the training run")
INDEX = _required("--index", "name of the index")
SUBMIT: Options = {
    "--address": {"help": "address of the cluster's dashboard, such as http://HEAD:8265"},
    "--working-dir": {
        "metavar": "DIR",
        "help": "upload this folder and run its code (default: run the code of the image)",
    },
    "--no-wait": {"action": "store_true", "help": "return at once instead of following the log"},
    "--status": {"metavar": "ID", "help": "print a job's status and exit"},
    "--stop": {"metavar": "ID", "help": "stop a job and exit"},
}
ENCODER: Options = {
    "--encoder": {
        "default": "",
        "help": "the text encoder, as for ingest, if it has moved; its weights must be those of the features (default: "
        "where ingest found it, or at the same path below the root)",
    }
}
FILTER: Options = {
    "--filter": {
        "action": "append",
        "default": [],
        "metavar": "'COLUMN OP VALUE'",
        "help": "answer only with videos whose metadata match, such as 'camera = front' or \"place in (pier, 'the "
        "harbour')\"; OP is =, !=, <, <=, >, >= or in; may be repeated, and all must match",
    }
}
JOB: Options = {**ROOT, **ADDRESS, **DRY_RUN}
INGEST_SHORT = tuple(
    f"ingest.{name}"
    for name in ("encoder", "student_encoder", "fps", "max_failure_share", "min_decoded_share", "retry", "limit")
)

COMMANDS: dict[str, Command] = {
    "import": Command(
        "import captions, moments or released features into a collection",
        "features.importing:import_collection",
        {
            "--layout": {"required": True, "choices": ["released", *LAYOUTS], "help": "format of the source"},
            **_required("--source", "a file, a folder or a URI; released: the folder of FeatureData/ and TextData/"),
            "--name": {
                "help": "name of the source, used as a prefix of generated query ids (default: layout and file name); "
                "released: the dataset, if the source holds several"
            },
            "--replace": {
                "action": "store_true",
                "help": "allow this import to remove more than half of the captions of its source",
            },
            **ROOT,
        },
        notes=COLUMNS,
    ),
    "ingest": Command(
        "turn videos and captions into features",
        "stages.ingest:ingest",
        {
            **_required(
                "--videos",
                "a folder, an s3:// prefix, or a manifest: csv, jsonl or parquet with a column `uri` and optionally "
                "`video_id` and `split`; other columns become metadata, for --filter",
            ),
            "--anonymous": {"action": "store_true", "help": "read videos from a public bucket without credentials"},
            **FEATURES,
            **JOB,
        },
        passes=("ingest",),
        sections=("ingest",),
        short=INGEST_SHORT,
    ),
    "train": Command(
        "distil a student from the teacher",
        "stages.train:train",
        {**RUN, **FEATURES, **JOB},
        passes=("config",),
        sections=("student", "train"),
        short=("train.num_workers",),
    ),
    "tune": Command(
        "search for better settings, and confirm the best on several seeds",
        "stages.tune:tune",
        {**_required("--study", "name of the study"), **FEATURES, **JOB},
        passes=("config",),
        sections=("student", "train", "tune"),
        show=tables.show_study,
    ),
    "ablate": Command(
        "answer the paper's own questions on your data",
        "stages.ablate:ablate",
        {"--study": {"default": "ablation", "help": "name of the study"}, **FEATURES, **JOB},
        passes=("config",),
        sections=("student", "train", "tune"),
        show=tables.show_ablation,
    ),
    "index": Command(
        "make all videos searchable with a run's student or with the teacher alone",
        "stages.index:index",
        {
            "--run": {"help": "name of the training run whose student encodes the videos"},
            "--teacher": {
                "action": "store_true",
                "help": "index the teacher's own vectors instead; needs neither a run nor captions",
            },
            "--features": {"default": "", "help": "feature set, with --teacher (default: default)"},
            **INDEX,
            **JOB,
        },
        passes=("index",),
        sections=("index",),
    ),
    "score": Command(
        "find the exact top-k videos, with moments, for many queries",
        "stages.score:score",
        {
            **INDEX,
            **_required(
                "--queries",
                "a split; a .txt file with one query per line; csv, jsonl or parquet with a column `text`; or - for "
                "standard input",
            ),
            **_required("--output", "name of the scores, ROOT/scores/NAME"),
            "--allow-missing": {
                "action": "store_true",
                "help": "continue without shards that are missing or unreadable, and report them",
            },
            **FILTER,
            **ENCODER,
            **JOB,
        },
        passes=("score",),
        sections=("score",),
        short=("score.top_k", "score.mode"),
    ),
    "search": Command(
        "find the best videos for one sentence, each with its moment",
        _search,
        {
            "text": {"help": "what to look for"},
            **INDEX,
            "--top-k": {"type": int, "default": 10, "help": "number of videos to show"},
            **FILTER,
            **ENCODER,
            **ROOT,
        },
        show=tables.show_answers,
    ),
    "evaluate": Command(
        "measure the recall of a run on a split, beside its teacher's",
        "stages.evaluate:evaluate",
        {**RUN, **_required("--split", "the split whose queries and videos are ranked"), **FILTER, **ROOT, **ADDRESS},
        passes=("evaluate", "index"),
        sections=("evaluate", "index"),
        short=("evaluate.protocol", "evaluate.choose_weights"),
        show=tables.show_evaluation,
    ),
    "demo": Command(
        "render a small collection of videos and run every stage on it",
        "stages.demo:demo",
        {"--root": {"default": "demo-root", "help": "a local folder"}},
        passes=("config",),
        sections=("demo",),
        preset="demo",
        show=tables.show_demo,
    ),
    "submit": Command(
        "run one of these commands as a job on a cluster",
        _submit,
        {"job": {"nargs": argparse.REMAINDER, "help": "a command and its options"}, **SUBMIT},
    ),
    "doctor": Command(
        "check a cluster and its storage before a long job",
        "stages.doctor:doctor",
        {
            **ROOT,
            **ADDRESS,
            "--encoder": {"default": "", "help": "MODEL:PRETRAINED whose weights every node must have"},
        },
        show=tables.show_checks,
    ),
    "report": Command(
        "write an HTML report about a run: figures, failures, example answers",
        "report.build:report",
        {
            **RUN,
            "--split": {"default": "test", "help": "split of the evaluation to show"},
            "--protocol": {
                "default": "held-out",
                "choices": ["held-out", "paper"],
                "help": "protocol of that evaluation",
            },
            "--index": {"default": "", "help": "index to take answers from; needed if the run has several"},
            "--study": {"default": "", "help": "search study to show; needed if there are several"},
            "--compare": {"nargs": "+", "default": [], "metavar": "RUN", "help": "runs to compare side by side"},
            "--name": {"default": "", "help": "name of the report (default: the name of the run)"},
            **ROOT,
        },
        passes=("report",),
        sections=("report",),
    ),
    "status": Command("summarise a collection", "collection.maintenance:status", ROOT),
    "verify": Command(
        "check that every shard of an index is there and undamaged",
        "index.verify:verify",
        {
            **INDEX,
            "--quick": {"action": "store_true", "help": "compare names and sizes only, without reading shards"},
            **ROOT,
        },
    ),
    "compact": Command("merge many small shards into larger, sorted ones", "collection.maintenance:compact", ROOT),
    "gc": Command(
        "delete shards that have been replaced",
        "collection.maintenance:gc",
        {
            **ROOT,
            "--retention-days": {
                "type": float,
                "default": 7.0,
                "help": "keep shards that were replaced within this many days",
            },
        },
    ),
    "remove": Command(
        "remove a video, a caption or a source of captions from every answer",
        "collection.maintenance:remove",
        {
            "video_id": {"nargs": "?", "help": "ID of the video (as in the answers of `prvr search`)"},
            "--query": {"metavar": "QUERY_ID", "help": "remove this caption instead"},
            "--source": {"metavar": "NAME", "help": "remove all captions of this source (as in `prvr status`) instead"},
            **ROOT,
        },
    ),
}
