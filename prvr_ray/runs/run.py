"""The files of a training run in storage, and how they are read back.

ROOT/runs/<run>/  config.yaml                        settings, as `prvr train --config` takes them
                  plan.json                          the shards that it reads
                  metrics/epoch-00003.json           metrics of an epoch
                  metrics/events.out.tfevents.*      the same for TensorBoard, one file an epoch
                  checkpoints/last-000000120.safetensors      weights, optimizer and progress after 120 updates
                  checkpoints/best-00003.safetensors          weights of the best epoch; best.json says which
                  summary.json                       once the run is finished

Every object is put whole. After a kill, training resumes from the latest checkpoint; epochs after it are trained
again, with the same result.
"""

import hashlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from prvr_ray.collection import differences
from prvr_ray.config import Config, resolve
from prvr_ray.storage import Store, check_name, get_json, open_store, put_json, put_json_if_absent
from prvr_ray.student.checkpoints import TrainingState, student_from_bytes, student_to_bytes
from prvr_ray.student.model import Student

SECTIONS = ("student", "train")  # what decides a student; other sections say how it is used
# What may differ between two starts of a run: where and how it computes, not what.
MAY_CHANGE = {
    "train.num_workers",
    "train.min_workers",
    "train.worker_cpus",
    "train.worker_gpus",
    "train.max_failures",
    "train.checkpoint_steps",
    "train.videos_per_pass",
    "train.cache_folder",
}
KEPT_CHECKPOINTS = 2
CONFIG = "config.yaml"

Metrics = dict[str, float]


@dataclass(frozen=True)
class RunFolder:
    """The files of one run. A small value that travels to workers."""

    store: Store

    def declare(self, config: Config, plan: dict[str, Any]) -> dict[str, Any]:
        """Begin a run, or resume one: put its settings and plan only if there are none.

        Returns:
            The run's plan.

        Raises:
            ValueError: see `check`.
        """
        if not self.store.put_if_absent(CONFIG, settings_to_yaml(config)):
            self.check(config)
        return put_json_if_absent(self.store, "plan.json", plan)

    def check(self, config: Config) -> None:
        """Check that the run, if there is one, has these settings.

        Raises:
            ValueError: it has others; each difference is named.
        """
        try:
            existing = settings_from_yaml(self.store.get(CONFIG))
        except FileNotFoundError:
            return
        there, here = (item.model_dump(include=set(SECTIONS), mode="json") for item in (existing, config))
        found = differences(there, here, may_differ=MAY_CHANGE)
        if found:
            raise ValueError(f"{self.store.uri} has other settings: {'; '.join(found)}. Give this run another name")

    @property
    def name(self) -> str:
        """The run's own name."""
        return self.store.uri.rpartition("/")[2]

    def refer_from(self, root: str) -> str:
        """What `open_run` finds this run by from a collection: its name, or FROM_ROOT:RUN if it is of another one.

        Args:
            root: URI of that collection's store.
        """
        home = self.store.uri.rpartition("/runs/")[0]
        return self.name if home == root else f"{home}:{self.name}"

    def config(self) -> Config:
        """The settings of the run.

        Raises:
            ValueError: there is no such run.
        """
        try:
            return settings_from_yaml(self.store.get(CONFIG))
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
        """The argument of `end`; None until the run is finished."""
        return self._get("summary.json")

    def latest_checkpoint(self) -> str | None:
        """The key of the newest training state, whose bytes `fit(resume=)` takes."""
        kept = self.store.list("checkpoints/last-")
        return kept[-1].key if kept else None

    def put_epoch(self, metrics: Metrics, state: TrainingState) -> None:
        """Keep an epoch: its metrics, its weights if they are the best so far, and the training state."""
        epoch = int(metrics["epoch"])
        put_json(self.store, f"metrics/epoch-{epoch:05d}.json", metrics)
        self.store.put(f"metrics/events.out.tfevents.{epoch:010d}.prvr", to_tensorboard(metrics))
        if metrics["is_best"]:
            key = f"checkpoints/best-{epoch:05d}.safetensors"
            self.store.put(key, student_to_bytes(state.model))
            put_json(self.store, "best.json", {**metrics, "weights": key})
            self._drop_old("checkpoints/best-")
        self.put_checkpoint(state)

    def metrics(self) -> list[Metrics]:
        """The metrics of each epoch, in order."""
        return [get_json(self.store, item.key) for item in self.store.list("metrics/epoch-")]

    def newest_metrics(self) -> tuple[int, Metrics]:
        """The number of epochs that have ended, and the metrics of the last one."""
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
            weights: which one, as `best_weights` returns it; None: that of the best epoch so far.

        Raises:
            ValueError: these weights are gone: training continued.
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

    Args:
        root: the collection.
        run: a name; FROM_ROOT:RUN for a run of another collection.

    Raises:
        ValueError: a name that is no single folder's.
    """
    home, _, name = run.rpartition(":")
    check_name("run", name)
    return RunFolder(open_store(home or root).child(f"runs/{name}"))


def settings_to_yaml(config: Config, comment: str = "") -> bytes:
    """The settings that decide a student, as `prvr train --config` takes them.

    Args:
        comment: a first line above them; line breaks in it become spaces.
    """
    values = yaml.safe_dump(config.model_dump(include=set(SECTIONS), mode="json"), sort_keys=False)
    return (f"# {' '.join(comment.split())}\n{values}" if comment else values).encode()


def settings_from_yaml(data: bytes) -> Config:
    """Read what `settings_to_yaml` wrote, in this version or an earlier one; settings that it lacks are defaults.

    Raises:
        ValueError: a setting or value that the configuration refuses.
    """
    return resolve(yaml.safe_load(data))


def to_tensorboard(metrics: Metrics) -> bytes:
    """One epoch's metrics as a TensorBoard event file."""
    from torch.utils.tensorboard import SummaryWriter

    with tempfile.TemporaryDirectory() as folder:
        with SummaryWriter(folder) as writer:
            for name, value in metrics.items():
                writer.add_scalar(name, value, int(metrics["epoch"]))
        return next(Path(folder).iterdir()).read_bytes()
