"""What a training run leaves in storage, and how it is read back.

ROOT/runs/<run>/  config.yaml                        settings, as `prvr train --config` takes them
                  plan.json                          the shards that it reads
                  metrics/epoch-00003.json           what was reported of an epoch
                  metrics/events.out.tfevents.*      the same for TensorBoard, one file an epoch
                  checkpoints/last-000000120.safetensors      weights, optimizer and progress after 120 updates
                  checkpoints/best-00003.safetensors          weights of the best epoch; best.json says which
                  summary.json                       from the end on

Every object is put whole. After a kill the newest checkpoint is gone on from; what comes after it is written again,
with the same content.
"""

import hashlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from prvr_ray.config import Config, resolve
from prvr_ray.storage import Store, check_name, get_json, open_store, put_json, put_json_if_absent
from prvr_ray.student.checkpoints import TrainingState, student_from_bytes, student_to_bytes
from prvr_ray.student.model import Student

SECTIONS = ("student", "train")
# What may differ between two starts of a run: where and how it computes, not what.
MAY_CHANGE = {
    "num_workers",
    "min_workers",
    "worker_cpus",
    "worker_gpus",
    "max_failures",
    "checkpoint_steps",
    "videos_per_pass",
    "cache_folder",
}
KEPT_CHECKPOINTS = 2

Metrics = dict[str, float]


@dataclass(frozen=True)
class RunFolder:
    """The files of one run. A small value that travels to workers."""

    store: Store

    def declare(self, config: Config, plan: dict[str, Any]) -> dict[str, Any]:
        """Begin a run, or go on with the one that stands: put its settings and plan only if there are none.

        Returns:
            The plan that stands.

        Raises:
            ValueError: a run of this name stands with other settings; each difference is named.
        """
        wanted = config.model_dump(include=set(SECTIONS), mode="json")
        if not self.store.put_if_absent("config.yaml", yaml.safe_dump(wanted, sort_keys=False).encode()):
            differences = _differences(self.config().model_dump(include=set(SECTIONS), mode="json"), wanted)
            if differences:
                raise ValueError(f"{self.store.uri} has other settings: {differences}. Give this run another name")
        return put_json_if_absent(self.store, "plan.json", plan)

    def config(self) -> Config:
        """The settings of the run.

        Raises:
            ValueError: there is no such run.
        """
        try:
            return resolve(yaml.safe_load(self.store.get("config.yaml")))
        except FileNotFoundError:
            raise ValueError(f"no run at {self.store.uri}; `prvr train` makes one") from None

    def plan(self) -> dict[str, Any] | None:
        """The shards that the run reads; None before it begins."""
        return self._get("plan.json")

    def put_checkpoint(self, state: TrainingState) -> None:
        """Keep a training state; the one before it stays, older ones go."""
        self.store.put(f"checkpoints/last-{state.progress.num_updates:09d}.safetensors", state.to_bytes())
        self._drop_old("checkpoints/last-")

    def end(self, summary: dict[str, Any]) -> None:
        """Mark the run as finished."""
        put_json(self.store, "summary.json", summary)

    def summary(self) -> dict[str, Any] | None:
        """What `end` was given; None as long as the run is not finished."""
        return self._get("summary.json")

    def latest_checkpoint(self) -> str | None:
        """The key of the newest training state, whose bytes `fit(resume=)` takes."""
        kept = self.store.list("checkpoints/last-")
        return kept[-1].key if kept else None

    def put_epoch(self, metrics: Metrics, state: TrainingState) -> None:
        """Keep an epoch: its metrics, its weights if they are the best so far, and the training state."""
        epoch = int(metrics["epoch"])
        put_json(self.store, f"metrics/epoch-{epoch:05d}.json", metrics)
        self.store.put(f"metrics/events.out.tfevents.{epoch:010d}.prvr", tensorboard_events(metrics))
        if metrics["is_best"]:
            key = f"checkpoints/best-{epoch:05d}.safetensors"
            self.store.put(key, student_to_bytes(state.model))
            put_json(self.store, "best.json", {**metrics, "weights": key})
            self._drop_old("checkpoints/best-")
        self.put_checkpoint(state)

    def metrics(self) -> list[Metrics]:
        """What was reported of each epoch, in order."""
        return [get_json(self.store, item.key) for item in self.store.list("metrics/epoch-")]

    def newest_metrics(self) -> tuple[int, Metrics]:
        """How many epochs have ended, and what was reported of the last one."""
        ended = self.store.list("metrics/epoch-")
        return len(ended), get_json(self.store, ended[-1].key) if ended else {}

    def best(self) -> Metrics:
        """The metrics of the best epoch, and `weights`, the key of its student.

        Raises:
            ValueError: no epoch has ended yet.
        """
        best = self._get("best.json")
        if best is None:
            raise ValueError(f"{self.store.uri} has no best epoch yet; let `prvr train` end one")
        return best

    def best_weights(self) -> dict[str, str]:
        """Which student is the best: `weights`, its key, and `weights_sha256`.

        Raises:
            ValueError: no epoch has ended yet.
        """
        key = str(self.best()["weights"])
        return {"weights": key, "weights_sha256": hashlib.sha256(self.store.get(key)).hexdigest()}

    def load_student(self, weights: Mapping[str, Any] | None = None) -> Student:
        """A student, on the CPU, for inference.

        Args:
            weights: which one, as `best_weights` says; None: that of the best epoch so far.

        Raises:
            ValueError: it is there no longer, for training went on.
        """
        if weights is None:
            return student_from_bytes(self.store.get(str(self.best()["weights"])))
        try:
            data = self.store.get(weights["weights"])
        except FileNotFoundError:
            data = b""
        if hashlib.sha256(data).hexdigest() != weights["weights_sha256"]:
            raise ValueError(f"{self.store.uri}/{weights['weights']} is another student now: make a new index")
        return student_from_bytes(data)

    def _get(self, key: str) -> dict[str, Any] | None:
        try:
            return get_json(self.store, key)
        except FileNotFoundError:
            return None

    def _drop_old(self, prefix: str) -> None:
        for item in self.store.list(prefix)[:-KEPT_CHECKPOINTS]:
            self.store.delete(item.key)


def open_run(root: str, run: str) -> RunFolder:
    """The folder of a run, there or not.

    Raises:
        ValueError: a name that is no single folder's.
    """
    check_name("run", run)
    return RunFolder(open_store(root).child(f"runs/{run}"))


def tensorboard_events(metrics: Metrics) -> bytes:
    """One epoch's metrics as a TensorBoard event file."""
    from torch.utils.tensorboard import SummaryWriter

    with tempfile.TemporaryDirectory() as folder:
        with SummaryWriter(folder) as writer:
            for name, value in metrics.items():
                writer.add_scalar(name, value, int(metrics["epoch"]))
        return next(Path(folder).iterdir()).read_bytes()


def _differences(standing: dict[str, Any], wanted: dict[str, Any]) -> str:
    return "; ".join(
        f"{section}.{name} is {standing[section][name]!r} there, {value!r} here"
        for section in SECTIONS
        for name, value in wanted[section].items()
        if standing[section][name] != value and name not in MAY_CHANGE
    )
