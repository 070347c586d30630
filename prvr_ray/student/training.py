"""The training loop: pure torch, one process or the workers of torch.distributed, the same numbers either way.

Owns the loop and nothing below it: losses are in `objective`, what workers exchange in `exchange`, batches in
`batching`. It stores nothing: two callbacks get the state after every step and every epoch, on every worker.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field

import numpy as np
import torch

from prvr_ray.config import StudentSettings, TrainSettings
from prvr_ray.student.batching import Batch, BatchReader, draw_batches, prefetch
from prvr_ray.student.cache import FeatureCache
from prvr_ray.student.checkpoints import Progress, TrainingState
from prvr_ray.student.exchange import Exchange
from prvr_ray.student.model import Student
from prvr_ray.student.objective import EpochWeights, batch_losses
from prvr_ray.student.optimizer import BertAdam, group_by_decay
from prvr_ray.student.validation import Validation

logger = logging.getLogger(__name__)

Metrics = dict[str, float]


def fit(
    train: FeatureCache,
    validation: FeatureCache,
    student: StudentSettings,
    settings: TrainSettings,
    *,
    on_epoch: Callable[[Metrics, TrainingState], None] = lambda metrics, state: None,
    on_step: Callable[[TrainingState], None] = lambda state: None,
    resume: bytes | None = None,
    device: str | torch.device = "cpu",
) -> TrainingState:
    """Train a student.

    Args:
        train, validation: features of both splits.
        on_epoch: gets the epoch's metrics (see `collect_metrics`) and the state, to report and to keep it.
        on_step: gets the state after each step but the last of an epoch, to keep it where it wants to.
        resume: what `TrainingState.to_bytes` gave; training resumes from it, bit for bit.
        device: of this process.

    Returns:
        The state at the end: after num_epochs, or after `patience` epochs without a better fused validation SumR.

    Raises:
        FloatingPointError: a loss that is not finite, before the update that it would have spoilt.
    """
    exchange = Exchange()
    videos = train.captioned_videos()
    state = create_state(train, student, settings, math.ceil(len(videos) / settings.videos_per_batch), device)
    if resume is not None:
        state.load_bytes(resume)
    model, progress = state.model, state.progress
    reader = _reader(train, settings, exchange, device)
    evaluation = Validation(_reader(validation, settings, exchange, device), student, exchange)
    teacher = evaluation.teacher()
    while progress.epoch < settings.num_epochs and progress.epochs_without_gain < settings.patience:
        weights = EpochWeights.of(settings, progress.epoch)
        batches = draw_batches(videos, settings.videos_per_batch, settings.seed, progress.epoch)
        watch = Stopwatch()
        for batch in watch.waits(prefetch(reader.load, batches[progress.step :])):
            progress.add(train_step(state, reader.place(batch), settings, weights, exchange))
            if progress.step < len(batches):
                on_step(state)
        validated = {"teacher": teacher, **evaluation.student(model)}
        metrics = collect_metrics(state, weights, validated, watch)
        metrics["is_best"] = progress.end_epoch(metrics["fused/sumr"])
        on_epoch(metrics, state)
    if progress.best_sumr < teacher["sumr"]:
        logger.warning(
            "the student's best validation SumR %.1f is below its teacher's %.1f", progress.best_sumr, teacher["sumr"]
        )
    return state


def create_state(
    train: FeatureCache,
    student: StudentSettings,
    settings: TrainSettings,
    steps_per_epoch: int,
    device: str | torch.device,
) -> TrainingState:
    """An untrained student of the features' dimensions, and its optimizer; the same on every worker."""
    torch.manual_seed(settings.seed)
    model = Student(
        train.frames.values_nD.shape[1],
        train.tokens.values_nD.shape[1],
        hidden_dim=student.hidden_dim,
        num_heads=student.num_heads,
        max_frames=student.max_frames,
        max_tokens=student.max_tokens,
        input_dropout=settings.input_dropout,
        dropout=settings.dropout,
        branches=tuple(student.branches),
    ).to(device, _dtype(settings))
    optimizer = BertAdam(
        group_by_decay(model, settings.weight_decay),
        settings.lr,
        settings.warmup,
        total_steps=settings.num_epochs * steps_per_epoch,
        max_grad_norm=settings.max_grad_norm,
    )
    return TrainingState(model, optimizer, Progress())


def is_untrained(student: Student, settings: TrainSettings) -> bool:
    """Whether a student's weights are still those that its training began with."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        initial = Student(**student.arguments).to(_dtype(settings)).state_dict()  # type: ignore[arg-type]
    return all(torch.equal(weights, initial[name].to(weights)) for name, weights in student.state_dict().items())


def train_step(
    state: TrainingState, batch: Batch, settings: TrainSettings, weights: EpochWeights, exchange: Exchange
) -> dict[str, float]:
    """Update the student once.

    Returns:
        The weighted loss parts of the whole batch, and their `total`.

    Raises:
        FloatingPointError: a part is not finite; nothing has been updated.
    """
    progress = state.progress
    torch.manual_seed(_step_seed(settings.seed, progress, exchange.rank + 1))
    negatives = torch.Generator().manual_seed(_step_seed(settings.seed, progress, 0))
    loss, parts = batch_losses(state.model, batch, settings, weights, exchange, negatives)
    values = dict(zip(parts, torch.stack(list(parts.values())).tolist(), strict=True))
    for name, value in values.items():
        if not math.isfinite(value):
            raise FloatingPointError(f"{name} is {value} at epoch {progress.epoch}, step {progress.step}")
    loss.backward()
    exchange.sum_gradients(state.model)
    state.optimizer.step()
    state.optimizer.zero_grad()
    return values | {"total": sum(values.values())}


def collect_metrics(
    state: TrainingState, weights: EpochWeights, validated: dict[str, Metrics], watch: "Stopwatch"
) -> Metrics:
    """What is reported of an epoch, as flat names.

    loss/<part>: mean over the steps. schedule/distillation|alpha|beta. <row>/<metric>: of the validation split, row
    being teacher, a branch, or fused. lr: of the next step. speed/videos_per_s, speed/data_wait_share, speed/step_s.
    """
    progress = state.progress
    losses = {f"loss/{name}": value / max(progress.step, 1) for name, value in progress.sums.items()}
    recalls = {f"{row}/{name}": value for row, metrics in validated.items() for name, value in metrics.items()}
    schedule = {f"schedule/{name}": value for name, value in asdict(weights).items()}
    lr = state.optimizer.rate(state.optimizer.param_groups[0])
    return {"epoch": progress.epoch, **losses, **schedule, "lr": lr, **recalls, **watch.metrics()}


@dataclass
class Stopwatch:
    """Speed of an epoch's steps, and how long they waited for data."""

    started: float = field(default_factory=time.perf_counter)
    stopped: float = field(default_factory=time.perf_counter)
    waited_s: float = 0.0
    num_videos: int = 0
    num_steps: int = 0

    def waits(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches; the time that each takes to come is counted."""
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            self.waited_s += time.perf_counter() - asked
            if batch is None:
                return
            yield batch
            self.num_steps += 1
            self.num_videos += len(batch.owner_of_video_V)
            self.stopped = time.perf_counter()

    def metrics(self) -> Metrics:
        """videos_per_s, step_s and data_wait_share of the steps so far."""
        seconds = max(self.stopped - self.started, 1e-9)
        return {
            "speed/videos_per_s": self.num_videos / seconds,
            "speed/step_s": seconds / max(self.num_steps, 1),
            "speed/data_wait_share": self.waited_s / seconds,
        }


def _reader(
    cache: FeatureCache, settings: TrainSettings, exchange: Exchange, device: str | torch.device
) -> BatchReader:
    return BatchReader(
        cache,
        sort_by_captions=settings.soft_target_rows == "batch_order",
        rank=exchange.rank,
        world_size=exchange.world_size,
        device=device,
        dtype=_dtype(settings),
    )


def _dtype(settings: TrainSettings) -> torch.dtype:
    return torch.float64 if settings.precision == "float64" else torch.float32


def _step_seed(seed: int, progress: Progress, stream: int) -> int:
    """Of one step's random numbers: stream 0 is shared by all workers, the others are a worker's own."""
    return int(np.random.SeedSequence([seed, progress.num_updates, stream]).generate_state(1, np.uint64)[0])
