"""The objective of one batch: encodings, scores, and the weighted loss parts (METHOD: "Losses").

Works on one worker's part of a batch. Loss parts are those of the whole batch on every worker; the gradients of all
workers, summed, are those of one process.

Shapes: N queries, V videos, R rows, D features, B branches.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from prvr_ray.config import TrainSettings
from prvr_ray.student.batching import Batch
from prvr_ray.student.exchange import Exchange
from prvr_ray.student.losses import frame_distillation_loss, nce_loss, soft_target_nce_loss, triplet_loss
from prvr_ray.student.model import Layout, Student
from prvr_ray.student.schedules import distillation_weight, schedule_epoch, soft_target_factor
from prvr_ray.student.scores import OwnFrames, Scores, score

INHERITANCE, EXPLORATION = "inheritance", "exploration"
IDLE_DECAY = 0.1  # a decay that moves less over a run hardly differs from none


@dataclass(frozen=True)
class EpochWeights:
    """What the schedules say for one epoch."""

    distillation: float
    alpha: float
    beta: float

    @classmethod
    def of(cls, settings: TrainSettings, epoch: int) -> "EpochWeights":
        """The weights of an epoch, counted from 0."""
        now, end = schedule_epoch(epoch, settings.num_epochs, settings.schedule_unit)
        k = settings.sigmoid_k
        return cls(
            distillation_weight(
                settings.distillation_decay,
                now,
                end,
                settings.distillation_decay_rate,
                settings.distillation_linear_rate,
                k,
            ),
            soft_target_factor(
                settings.alpha_decay, settings.alpha, settings.alpha_floor, now, end, settings.alpha_decay_rate, k
            ),
            soft_target_factor(
                settings.beta_decay, settings.beta, settings.beta_floor, now, end, settings.beta_decay_rate, k
            ),
        )


def find_idle_decays(settings: TrainSettings) -> list[str]:
    """Name the decays that move by less than 0.1 over the run, with where they begin and end; none without a decay."""
    first, last = EpochWeights.of(settings, 0), EpochWeights.of(settings, settings.num_epochs - 1)
    distils = settings.distillation and settings.distillation_weight > 0
    softens = settings.inheritance_soft_targets or settings.exploration_soft_targets
    asked = {
        "distillation": settings.distillation_decay if distils else "none",
        "alpha": settings.alpha_decay if softens and settings.alpha else "none",
        "beta": settings.beta_decay if softens and settings.beta else "none",
    }
    return [
        f"{name} ({kind}) only moves from {getattr(first, name):.2f} to {getattr(last, name):.2f}"
        for name, kind in asked.items()
        if kind != "none" and abs(getattr(first, name) - getattr(last, name)) < IDLE_DECAY
    ]


def batch_losses(
    model: Student,
    batch: Batch,
    settings: TrainSettings,
    weights: EpochWeights,
    exchange: Exchange,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Encode, score, and weigh.

    Args:
        generator: of the triplet negatives, on the CPU; the same state on all workers.

    Returns:
        What this worker calls backward on, and the weighted parts of the whole batch's loss, detached.
    """
    queries, frames = _encode(model, batch, settings, exchange)
    student = {name: score(queries[name], frames[name], batch.frame_layout, _own_of(name, batch)) for name in frames}
    teacher = _score_teacher(batch) if _needs_teacher(model, settings) else None

    columns = [matrix_Nv for scores in student.values() for matrix_Nv in (scores.cosine_NV, scores.dot_NV)]
    columns += [_soft_scores(teacher, settings)] if teacher else []
    columns = exchange.gather_columns(columns, batch.owner_of_video_V)

    parts = {}
    for index, name in enumerate(student):
        cosine_NV, dot_NV = columns[2 * index : 2 * index + 2]
        parts[f"{name}_triplet"] = triplet_loss(
            cosine_NV,
            batch.video_of_query_N,
            settings.margin,
            settings.hard_pool_size,
            generator,
            relevant_NV=batch.relevant_NV,
        )
        parts[f"{name}_nce"] = _nce(name, dot_NV, columns[-1], batch, settings, weights)
    total = torch.stack(list(parts.values())).sum()
    if teacher and _distils(settings):
        distillation = weights.distillation * _distil(student[INHERITANCE], teacher, batch, settings)
        total = total + distillation
        parts["distillation"] = exchange.sum(distillation)
    return total, {name: part.detach() for name, part in parts.items()}


def _encode(
    model: Student, batch: Batch, settings: TrainSettings, exchange: Exchange
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """All workers' query vectors (N, D) and this worker's frames (R, D) of each branch."""
    limit = settings.videos_per_pass or len(batch.owner_of_video_V)
    num_passes = math.ceil(batch.frame_layout.num_sequences / limit)
    dtype = batch.frames_RD.dtype
    with torch.autocast(batch.frames_RD.device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
        frames = _in_passes(model.encode_frame_rows, batch.frames_RD, batch.frame_layout, num_passes)
        queries = _in_passes(model.encode_query_rows, batch.tokens_RD, batch.token_layout, num_passes)
    local_nBD = torch.stack([vectors_nD.to(dtype) for vectors_nD in queries.values()], 1)
    queries_NBD = exchange.gather(local_nBD, batch.owner_of_query_N)
    return (
        dict(zip(queries, queries_NBD.unbind(1), strict=True)),
        {name: rows_RD.to(dtype) for name, rows_RD in frames.items()},
    )


def _in_passes(
    encode: Callable[[Tensor, Layout], dict[str, Tensor]], rows_RD: Tensor, layout: Layout, num_passes: int
) -> dict[str, Tensor]:
    """Encode at once, or part by part with activations computed anew in the backward pass: one part's memory."""
    if num_passes <= 1:
        return encode(rows_RD, layout)
    parts = [checkpoint(encode, rows_RD[rows], part, use_reentrant=False) for rows, part in layout.split(num_passes)]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _own_of(name: str, batch: Batch) -> OwnFrames | None:
    return batch.own if name == INHERITANCE else None


def _needs_teacher(model: Student, settings: TrainSettings) -> bool:
    return INHERITANCE in model.branches and (_distils(settings) or settings.inheritance_soft_targets)


def _distils(settings: TrainSettings) -> bool:
    return settings.distillation and settings.distillation_weight > 0


@torch.no_grad()
def _score_teacher(batch: Batch) -> Scores:
    return score(batch.teacher_queries_ND, batch.teacher_frames_RD, batch.frame_layout, batch.own)


def _soft_scores(teacher: Scores, settings: TrainSettings) -> Tensor:
    """Scores whose softmax is the teacher's opinion. Normalised CLIP vectors need the logit scale, or it is uniform."""
    return settings.logit_scale * teacher.cosine_NV if settings.teacher_scores == "logit_scale" else teacher.dot_NV


def _nce(
    name: str, dot_NV: Tensor, teacher_NV: Tensor, batch: Batch, settings: TrainSettings, weights: EpochWeights
) -> Tensor:
    is_soft, weight, soft_NV = {
        INHERITANCE: (settings.inheritance_soft_targets, settings.inheritance_nce_weight, teacher_NV.detach()),
        EXPLORATION: (
            settings.exploration_soft_targets,
            settings.exploration_nce_weight,
            dot_NV.detach() if settings.detach_soft_targets else dot_NV,
        ),
    }[name]
    if not is_soft:
        return weight * nce_loss(dot_NV, batch.video_of_query_N, relevant_NV=batch.relevant_NV)
    return weight * soft_target_nce_loss(
        dot_NV, soft_NV, batch.video_of_query_N, weights.alpha, weights.beta, relevant_NV=batch.relevant_NV
    )


def _distil(student: Scores, teacher: Scores, batch: Batch, settings: TrainSettings) -> Tensor:
    layout = batch.own.layout
    divergence = frame_distillation_loss(
        layout.pad(student.own_cosine_K),
        layout.pad(teacher.own_cosine_K),
        layout.absent_SL == 0,
        settings.distillation_temperature,
    )
    per_query = 1 / len(batch.video_of_query_N) if settings.distillation_reduction == "mean" else 1.0
    return settings.distillation_weight * per_query * divergence
