"""`prvr demo`: renders a world, trains a teacher, then calls every stage as its command does.

Every step keeps its results below ROOT; run again, the command resumes from them.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import ray
from rich.console import Console

from prvr_ray.collection import declare_spec, existing_collection
from prvr_ray.collection.history import record
from prvr_ray.config import Config, DemoSettings
from prvr_ray.demo.tiny_teacher import IMAGE_SIZE, save_encoder, train_tiny_teacher
from prvr_ray.demo.world import Script, plan_world, queries_of, render, still
from prvr_ray.encoders import load_encoder
from prvr_ray.features.importing import import_collection
from prvr_ray.index.teacher_encoder import TEACHER
from prvr_ray.progress import Steps
from prvr_ray.report.build import report
from prvr_ray.scores.lookup import open_lookup
from prvr_ray.stages.evaluate import evaluate
from prvr_ray.stages.index import index
from prvr_ray.stages.ingest import ingest
from prvr_ray.stages.score import score
from prvr_ray.stages.session import connect
from prvr_ray.stages.train import train
from prvr_ray.stages.tune import tune
from prvr_ray.storage import open_store

NAME = "demo"  # of the run, the study, the index, the scores and the report
_NUM_ANSWERS = 3  # of the question before training

Summary = dict[str, Any]


def demo(config: Config, *, root: str) -> Summary:
    """Render, teach, and run all stages on one small collection.

    Args:
        config: settings of all stages; preset `demo`.
        root: a local folder. The videos lie in its folder world/, the teacher in teacher/.

    Returns:
        What each step returned, with its seconds: `ask_teacher` has what the teacher's index answers before training,
        `evaluate` the table of the test split, `report` the page.

    Raises:
        ValueError: `root` is not a local folder, or holds a demo with other settings.
    """
    if "://" in root:
        raise ValueError(f"the demo needs a local folder; --root {root} is not one")
    home = Path(root).resolve()
    world, teacher = home / "world", home / "teacher"
    declare_spec(open_store(str(world)), config.demo.model_dump())
    steps = {
        "render": lambda: _render(plan_world(config.demo.seed, config.demo.num_videos), world),
        "teach": lambda: _teach(config.demo, teacher),
        **_stages(_completed(config, teacher), str(home), world),
    }
    summaries: Summary = {}
    with connect():
        for name, step in steps.items():
            begun = time.monotonic()
            summaries[name] = step()
            summaries[name]["seconds"] = round(time.monotonic() - begun, 1)
            record(str(home), name, summaries[name])
            Console(stderr=True).print(f"[bold]{name:<9}[/]{summaries[name]['seconds']:6.1f} s")
    return summaries


def _stages(config: Config, root: str, world: Path) -> dict[str, Callable[[], Summary]]:
    """The stages in order, each called as its command calls it."""
    trials = config.train.model_copy(update={"num_workers": 1, "num_epochs": config.demo.tune_epochs})
    return {
        "import": lambda: import_collection("jsonl", f"{world}/captions.jsonl", root),
        "ingest": lambda: ingest(config.ingest, root=root, videos=f"{world}/videos.jsonl"),
        "index_teacher": lambda: index(config.index, root=root, index=TEACHER, teacher=True),
        "ask_teacher": lambda: _ask_teacher(root),
        "train": lambda: train(config, root=root, run=NAME),
        "tune": lambda: tune(config.model_copy(update={"train": trials}), root=root, study=NAME),
        "index": lambda: index(config.index, root=root, run=NAME, index=NAME),
        "score": lambda: score(config.score, root=root, index=NAME, queries="test", output=NAME),
        "evaluate": lambda: evaluate(config.evaluate, config.index, root=root, run=NAME, split="test"),
        "report": lambda: report(config.report, root=root, run=NAME),
    }


def _ask_teacher(root: str) -> Summary:
    """Ask the teacher's index the first question of the test split: what can be had before any training."""
    collection = existing_collection(root)
    lookup = open_lookup(collection, TEACHER)
    text = collection.queries("test")["text"][0].as_py()
    [found] = lookup.best(lookup.embed_texts(load_encoder(lookup.text_encoder, "cpu"), [text]), _NUM_ANSWERS)
    shown = ("video_id", "score", "start_s", "end_s")
    answers = [{name: getattr(answer, name) for name in shown} for answer in found]
    return {"query": text, "answers": [{"rank": rank, **answer} for rank, answer in enumerate(answers, start=1)]}


def _completed(config: Config, teacher: Path) -> Config:
    """The settings, with the teacher that the demo trains as the encoder."""
    encoder = f"{teacher}/model.json:{teacher}/model.safetensors"
    return config.model_copy(update={"ingest": config.ingest.model_copy(update={"encoder": encoder})})


def _render(scripts: list[Script], world: Path) -> Summary:
    """Write the videos, a manifest of them, and their captions."""
    missing = [script for script in scripts if not (world / script.video_id).exists()]
    tasks = [_render_one.remote(script, str(world)) for script in missing]
    with Steps("render", len(missing), "videos") as steps:
        while tasks:
            done, tasks = ray.wait(tasks)
            ray.get(done)
            steps.advance(len(done))
    videos = [{"uri": script.video_id, "video_id": script.video_id, "split": script.split} for script in scripts]
    _write_lines(world / "videos.jsonl", videos)
    _write_lines(world / "captions.jsonl", [_caption(query) for query in queries_of(scripts)])
    return {"rendered": len(missing), "output": str(world)}


@ray.remote
def _render_one(script: Script, folder: str) -> None:
    render(script, folder)


def _caption(query: dict[str, Any]) -> dict[str, Any]:
    """A line of captions.jsonl, as `prvr import --layout jsonl` takes it."""
    (moment,) = query["moments"]
    return {**moment, **{name: query[name] for name in ("query_id", "text", "split")}}


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def _teach(settings: DemoSettings, folder: Path) -> Summary:
    """Train the teacher on stills, unless that has been done."""
    if not (folder / "model.safetensors").exists():
        rng = np.random.default_rng(settings.seed)
        images, captions = zip(*(still(rng, IMAGE_SIZE) for _ in range(settings.num_stills)), strict=True)
        with Steps("teach", settings.teacher_steps, "steps") as steps:
            model = train_tiny_teacher(
                np.stack(images).transpose(0, 3, 1, 2),
                captions,
                num_steps=settings.teacher_steps,
                seed=settings.seed,
                on_step=lambda loss: steps.advance(note=f"loss {loss:.3f}"),
            )
        save_encoder(model, folder)
    return {"output": str(folder)}
