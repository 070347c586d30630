"""Every setting of prvr_ray: one pydantic model per stage, the paper's defaults, and the presets.

A field's description says what it is, its unit and its source. Settings are checked here, once; the code behind takes
plain values.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]


class Settings(BaseModel):
    """The base of all sections: unknown keys are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class IngestSettings(Settings):
    """Videos and captions to features."""

    encoder: str = Field("", description="teacher, MODEL:PRETRAINED of open_clip, or a local config and checkpoint")
    student_encoder: str = Field("", description="encoder of the student's inputs; empty: the teacher's")
    fps: Positive = Field(1.0, description="frames per second that are wanted")
    sampling: Literal["uniform", "keyframes"] = Field(
        "uniform", description="uniform: one frame every 1/fps seconds; keyframes: the container's keyframes only, fast"
    )
    extensions: list[str] = Field(
        ["mp4", "m4v", "mov", "mkv", "webm", "avi", "flv", "3gp", "ts", "mpg", "mpeg", "wmv", "ogv"],
        description="a folder's files with other endings count as skipped",
    )
    segment_frames: Count = Field(
        256, le=1024, description="frames of one segment at most: what is decoded, retried and committed at once"
    )
    split_shares: dict[str, Share] = Field(
        {"train": 0.8, "val": 0.1, "test": 0.1}, description="share of each split among videos that name none"
    )
    max_failure_share: Share = Field(0.05, description="a larger share of failed videos ends the run with exit code 1")
    retry: str = Field("transient", description="which failures to try again: transient, all, or one error class")
    limit: int = Field(0, ge=0, description="ingest at most this many videos; 0: all")
    shard_bytes: Count = Field(64 * 2**20, le=256 * 2**20, description="bytes of one feature shard, about")
    decode_timeout_s: Positive = Field(600.0, description="seconds that one segment may take to decode")
    decode_stall_s: Positive = Field(60.0, description="seconds without a decoded packet, after which a file has hung")
    decode_memory_bytes: Count = Field(4 * 2**30, description="memory of one decoder process, bytes")
    max_duration_s: Positive = Field(48 * 3600.0, description="seconds of one video at most; a longer one is a failure")
    max_pixels: Count = Field(8192 * 8192, description="pixels of one frame at most; a larger one is a failure")
    num_decoders: int = Field(0, ge=0, description="decoder processes; 0: one per CPU of the cluster")
    decoder_cpus: float = Field(
        0.0, ge=0, description="CPUs of one decoder; 0: one, or half of one where the encoder has no GPU"
    )
    min_encoders: Count = Field(1, description="encoder actors at the start")
    max_encoders: Count = Field(1, description="encoder actors at most")
    encoder_gpus: float = Field(0.0, ge=0, description="GPUs of one encoder; 0: it runs on the CPU")
    encoder_cpus: Positive = Field(0.5, description="CPUs of one encoder")
    decoder_labels: dict[str, str] = Field({}, description="labels that a decoder's node must carry, name: value")
    encoder_labels: dict[str, str] = Field({}, description="labels that an encoder's node must carry, name: value")
    batch_frames: Count = Field(64, description="frames of one forward pass of the encoder")


class StudentSettings(Settings):
    """The architecture of the student; METHOD: section 3 of arXiv 2510.12283."""

    hidden_dim: Count = Field(384, description="features of both branches")
    num_heads: Count = Field(4, description="attention heads; must divide hidden_dim")
    max_frames: Count = Field(128, description="frames that the student sees at most; longer videos are sampled or cut")
    max_tokens: Count = Field(30, description="tokens of a query at most; the first are kept")
    branches: list[Literal["inheritance", "exploration"]] = Field(
        ["inheritance", "exploration"], min_length=1, max_length=2, description="branches to train"
    )
    inheritance_weight: Share = Field(0.7, description="of the inheritance branch's cosine in the fused score")
    exploration_weight: Share = Field(0.3, description="of the exploration branch's cosine in the fused score")

    @model_validator(mode="after")
    def _check(self) -> "StudentSettings":
        if self.hidden_dim % self.num_heads:
            divisors = ", ".join(str(n) for n in range(1, 17) if self.hidden_dim % n == 0)
            raise ValueError(
                f"student.num_heads={self.num_heads} does not divide hidden_dim={self.hidden_dim}; use {divisors}"
            )
        if len(set(self.branches)) < len(self.branches):
            raise ValueError(f"student.branches={self.branches} names a branch twice")
        return self


class TrainSettings(Settings):
    """Distillation of the student; defaults are the paper's for ActivityNet Captions unless stated."""

    train_split: str = Field("train", description="split to train on")
    validation_split: str = Field("val", description="split that chooses the checkpoint; paper protocol: test")
    num_epochs: Count = Field(120, description="epochs at most")
    patience: Count = Field(11, description="epochs without a better validation SumR before training stops")
    seed: int = Field(9527, ge=0, description="of initial weights, batches, negatives and dropout")
    videos_per_batch: Count = Field(128, description="videos of one global batch, with all their captions")
    videos_per_pass: int = Field(
        0, ge=0, description="videos that a worker encodes at once; activations are computed anew for each; 0: all"
    )
    precision: Literal["float32", "bf16", "float64"] = Field(
        "float32", description="bf16: autocast in the encoders, scores and losses stay float32; float64: for checks"
    )

    lr: Positive = Field(2.5e-4, description="peak learning rate")
    warmup: Share = Field(0.01, description="share of all steps in linear warm-up")
    weight_decay: float = Field(0.01, ge=0, description="not for biases and LayerNorm")
    max_grad_norm: Positive = Field(1.0, description="L2 norm that each parameter's gradient is clipped to")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.25, description="inside the attention blocks")
    input_dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.25, description="around the input projection")

    margin: Positive = Field(0.2, description="of the triplet loss, cosine")
    hard_pool_size: Count = Field(20, description="hardest negatives that one is drawn from")
    inheritance_nce_weight: Weight = Field(0.04, description="of the inheritance branch's contrastive loss")
    exploration_nce_weight: Weight = Field(0.04, description="of the exploration branch's contrastive loss")
    distillation_weight: Weight = Field(0.1, description="of the frame distillation at epoch 0; 0: none")
    distillation_decay: Literal["exp", "linear", "sigmoid", "none"] = Field("exp", description="over the epochs")
    distillation_decay_rate: Share = Field(0.95, description="factor of an epoch, with distillation_decay=exp")
    distillation_temperature: Positive = Field(0.2, description="cosines are divided by it before the softmax")
    distillation_reduction: Literal["sum", "mean"] = Field(
        "sum", description="over a batch's queries; sum is the paper's, its weight grows with the batch"
    )
    inheritance_soft_targets: bool = Field(True, description="soften labels by the teacher's scores; else hard labels")
    exploration_soft_targets: bool = Field(True, description="soften labels by the branch's own scores")
    alpha: Share = Field(0.8, description="share of hard labels at epoch 0")
    alpha_floor: Share = Field(0.0, description="alpha decays to it, or to 0 if it starts below")
    alpha_decay: Literal["sigmoid", "exp", "linear", "cosine", "none"] = Field("sigmoid", description="over the epochs")
    beta: Share = Field(0.8, description="hard part of a softened label at epoch 0")
    beta_floor: Share = Field(0.5, description="beta decays to it, or to 0 if it starts below")
    beta_decay: Literal["sigmoid", "exp", "linear", "cosine", "none"] = Field("sigmoid", description="over the epochs")
    detach_soft_targets: bool = Field(False, description="stop gradients through the exploration branch's own targets")
    soft_target_rows: Literal["batch_order", "random"] = Field(
        "batch_order", description="rows with hard labels: the caption-rich videos first (the paper), or random ones"
    )
    teacher_scores: Literal["raw", "logit_scale"] = Field(
        "raw", description="soft scores: dot products of the stored vectors (the paper), or logit_scale * cosine"
    )
    logit_scale: Positive = Field(100.0, description="of CLIP; read with teacher_scores=logit_scale")
    faithful_alignment: bool = Field(
        False, description="resample the student's frames to the teacher's in training, as published, not the reverse"
    )

    teacher_noise: Weight = Field(
        0.0, description="noise on the teacher's vectors, in units of their own length; for ablations"
    )

    checkpoint_steps: int = Field(0, ge=0, description="steps between checkpoints; 0: at epoch ends only")
    num_workers: Count = Field(1, description="data-parallel workers, at most")
    min_workers: int = Field(0, ge=0, description="elastic: go on with as few as this many; 0: always num_workers")
    worker_cpus: int = Field(0, ge=0, description="CPUs of one worker; 0: an equal share, or 1 beside a GPU")
    worker_gpus: float = Field(0.0, ge=0, description="GPUs of one worker; 0: it runs on the CPU")
    max_failures: int = Field(3, ge=0, description="lost workers after which the run gives up")
    cache_folder: str = Field(
        "", description="node-local folder of the feature cache, kept for later runs; empty: prvr-ray-UID in /tmp"
    )


class IndexSettings(Settings):
    """Student encoding of a feature set."""

    windowing: Literal["whole", "windows"] = Field(
        "whole", description="whole: sample a long video down to the student's frame limit (the paper); windows: cut it"
    )
    window_frames: int = Field(0, ge=0, description="frames of a cut at most; 0: the student's frame limit")
    overlap_frames: int = Field(32, ge=0, description="frames that neighbouring cuts share, at most half of a cut")
    shard_bytes: Count = Field(
        128 * 2**20,
        le=256 * 2**20,
        description="bytes of one index shard, about; an indexer holds up to four of them",
    )
    pass_frames: Count = Field(8192, description="frames of one forward pass of the student, about")
    num_indexers: Count = Field(1, description="indexing workers")
    indexer_cpus: Positive = Field(1.0, description="CPUs of one indexing worker")
    indexer_gpus: float = Field(0.0, ge=0, description="GPUs of one indexing worker; 0: it runs on the CPU")
    indexer_labels: dict[str, str] = Field({}, description="labels that an indexer's node must carry, name: value")


class ScoreSettings(Settings):
    """Exact top-k answers."""

    top_k: Count = Field(100, description="videos per query")
    mode: Literal["exact", "fast"] = Field(
        "exact", description="fast: select in bf16 with a proven bound, where the device has it; same answers"
    )
    num_moments: int = Field(10, ge=0, description="answers per query that get their moment: the first ones")
    moment_threshold: Share = Field(
        0.5, description="a moment's frames score above this, from the window's median (0) to its peak (1)"
    )
    query_block: Count = Field(65_536, description="queries that are resident at once; shards are read once for each")
    unit_bytes: Count = Field(
        512 * 2**20, description="bytes of shards in one unit of work, about; a scorer holds two shards"
    )
    num_scorers: int = Field(0, ge=0, description="scoring workers; 0: as many as the cluster has room for now")
    scorer_cpus: Positive = Field(1.0, description="CPUs of one scoring worker")
    scorer_gpus: float = Field(0.0, ge=0, description="GPUs of one scoring worker; 0: it runs on the CPU")
    scorer_labels: dict[str, str] = Field({}, description="labels that a scorer's node must carry, name: value")


class EvaluateSettings(Settings):
    """Recall of a run on a split."""

    protocol: Literal["held-out", "paper"] = Field(
        "held-out", description="paper: the reported split also chose the checkpoint"
    )
    mode: Literal["exact", "fast"] = Field("exact", description="as for score; the figures are the same")
    choose_weights: bool = Field(False, description="choose the branch weights on the run's validation split")
    teacher_weight: Share = Field(0.5, description="of the teacher's cosine in the row teacher+student")
    ratio_edges: list[Share] = Field([0.2, 0.4], description="inner borders of the moment-to-video ratio groups")
    iou_thresholds: list[Share] = Field([0.3, 0.5, 0.7], description="of R@1 for moments in the relevant video")
    moment_threshold: Share = Field(0.5, description="as for score")
    evaluator_cpus: Positive = Field(1.0, description="CPUs of the worker that evaluates")
    evaluator_gpus: float = Field(0.0, ge=0, description="GPUs of the worker that evaluates; 0: it runs on the CPU")


# What `prvr tune` varies unless a file says otherwise: KIND: [bounds], both ends included (prvr_ray.tuning.space).
# Ranges reach about a factor of three around the paper's values; of the branch weights only the ratio counts.
DEFAULT_SPACE: dict[str, dict[str, list[Any]]] = {
    "train.distillation_weight": {"loguniform": [0.01, 1.0]},
    "train.distillation_decay": {"choice": ["exp", "linear", "sigmoid", "none"]},
    "train.distillation_decay_rate": {"uniform": [0.85, 0.995]},
    "train.distillation_temperature": {"loguniform": [0.05, 1.0]},
    "train.alpha": {"uniform": [0.0, 1.0]},
    "train.alpha_floor": {"uniform": [0.0, 0.5]},
    "train.alpha_decay": {"choice": ["sigmoid", "exp", "linear", "cosine", "none"]},
    "train.beta": {"uniform": [0.0, 1.0]},
    "train.beta_floor": {"uniform": [0.0, 0.8]},
    "train.beta_decay": {"choice": ["sigmoid", "exp", "linear", "cosine", "none"]},
    "train.inheritance_nce_weight": {"loguniform": [0.01, 0.2]},
    "train.exploration_nce_weight": {"loguniform": [0.01, 0.2]},
    "train.margin": {"uniform": [0.05, 0.4]},
    "train.hard_pool_size": {"int": [1, 64]},
    "student.exploration_weight": {"uniform": [0.1, 0.9]},
    "train.lr": {"loguniform": [8e-5, 1e-3]},
    "train.dropout": {"uniform": [0.0, 0.5]},
    "train.input_dropout": {"uniform": [0.0, 0.5]},
    "train.soft_target_rows": {"choice": ["batch_order", "random"]},
    "train.detach_soft_targets": {"choice": [False, True]},
}


class TuneSettings(Settings):
    """The hyperparameter search, its proof, and the ablations."""

    num_trials: Count = Field(32, description="trials, the base configuration included; with pbt: the population")
    space: dict[str, dict[str, list[Any]]] = Field(
        DEFAULT_SPACE, description="SETTING: {uniform | loguniform | int: [low, high]} or {choice: [value, ...]}"
    )
    points: list[dict[str, Any]] = Field(
        [], description="tried right after the base: SETTING: value; settings left out are the base's"
    )
    sampler: Literal["tpe", "random"] = Field("tpe", description="how later points are chosen; tpe learns from trials")
    seed: int = Field(0, description="of the sampler")
    scheduler: Literal["asha", "pbt", "none"] = Field(
        "asha", description="asha: stop what falls behind; pbt: population based training; none: train all to the end"
    )
    grace_epochs: Count = Field(5, description="asha: epochs of every trial; pbt: epochs between two perturbations")
    reduction_factor: Annotated[int, Field(ge=2)] = Field(
        3, description="asha: one trial in this many goes on at grace_epochs, grace_epochs * reduction_factor, ..."
    )
    trial_cpus: Positive = Field(1.0, description="CPUs of one trial; trials of one process, train.num_workers=1")
    trial_gpus: float = Field(0.0, ge=0, description="GPUs of one trial, or a share of one; 0: it runs on the CPU")
    max_concurrent: int = Field(
        0, ge=0, description="trials at a time; 0: as many as there is room for now, so nodes come one after another"
    )
    confirm_top: int = Field(3, ge=0, description="best trials that are trained again on seeds; 0: no proof")
    num_seeds: Annotated[int, Field(ge=2)] = Field(5, description="seeds of the proof, and of each ablation")
    test_split: str = Field("test", description="split that the proof reports once; nothing is chosen by it")
    confidence: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.95, description="of the intervals; those of the proof hold for all its candidates together"
    )
    teacher_noise: list[Annotated[float, Field(ge=0)]] = Field(
        [0.5, 1.0, 2.0], description="ablate: steps of noise on the teacher's vectors, in units of their own length"
    )


class ReportSettings(Settings):
    """The HTML page."""

    num_examples: int = Field(4, ge=0, description="queries shown of each kind: best, worst, random")
    num_answers: Count = Field(5, description="videos shown for each of these queries")
    moment_threshold: Share = Field(0.5, description="as for score")
    filmstrips: bool = Field(True, description="show frames of the answers; remote videos are downloaded for it")
    num_resamples: Count = Field(2000, description="draws of the bootstrap that intervals come from")
    confidence: Annotated[float, Field(gt=0, lt=1)] = Field(0.95, description="of the intervals")
    seed: int = Field(0, ge=0, description="of the draws, and of the random queries")


class DemoSettings(Settings):
    """The demo world."""

    seed: int = Field(0, ge=0, description="of the videos, their captions and the teacher")
    num_videos: dict[str, Count] = Field(
        {"train": 200, "val": 40, "test": 160}, description="videos of each split; three described moments each"
    )
    num_stills: Count = Field(6000, description="pictures that the teacher learns from")
    teacher_steps: Count = Field(400, description="optimiser steps of the teacher, 64 pictures each")
    tune_epochs: Count = Field(10, description="epochs of a trial at most")


SECTIONS: dict[str, type[Settings]] = {
    "ingest": IngestSettings,
    "student": StudentSettings,
    "train": TrainSettings,
    "index": IndexSettings,
    "score": ScoreSettings,
    "evaluate": EvaluateSettings,
    "tune": TuneSettings,
    "report": ReportSettings,
    "demo": DemoSettings,
}

# The paper's settings for its three datasets (METHOD: "Optimiser").
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "tvr": {"train": {"lr": 3e-4, "margin": 0.1, "dropout": 0.2, "input_dropout": 0.2}},
    "activitynet": {"train": {"lr": 2.5e-4, "margin": 0.2, "dropout": 0.25, "input_dropout": 0.25}},
    "charades": {"train": {"lr": 2.4e-4, "margin": 0.2, "dropout": 0.15, "input_dropout": 0.15}},
    "demo": {
        "ingest": {"fps": 2.0},
        "student": {"hidden_dim": 128},
        "train": {"num_epochs": 30, "patience": 30, "videos_per_batch": 32, "lr": 5e-4, "num_workers": 2},
        "tune": {"num_trials": 4, "grace_epochs": 4, "confirm_top": 0},
    },
}


class Config(Settings):
    """All sections together: what `--config` reads and what is written beside every artifact."""

    ingest: IngestSettings = IngestSettings()
    student: StudentSettings = StudentSettings()
    train: TrainSettings = TrainSettings()
    index: IndexSettings = IndexSettings()
    score: ScoreSettings = ScoreSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    tune: TuneSettings = TuneSettings()
    report: ReportSettings = ReportSettings()
    demo: DemoSettings = DemoSettings()


def resolve(values: dict[str, Any], preset: str | None = None) -> Config:
    """Check settings once and complete them with a preset and the defaults.

    Args:
        values: section -> field -> value, as a YAML file or the command line gives them.
        preset: a name of PRESETS; `values` win over it.

    Raises:
        ValueError: an unknown preset, section or field (the valid ones are listed), or a value out of range.
    """
    if preset is not None and preset not in PRESETS:
        raise ValueError(f"unknown preset {preset!r}; one of {', '.join(PRESETS)}")
    merged = {name: dict(fields) for name, fields in PRESETS.get(preset or "", {}).items()}
    for section, fields in values.items():
        if section not in SECTIONS:
            raise ValueError(f"unknown section {section!r}; one of {', '.join(SECTIONS)}")
        if not isinstance(fields, dict):
            raise ValueError(f"section {section!r} must hold `name: value` pairs, not {fields!r}")
        merged.setdefault(section, {}).update(fields)
    try:
        return Config.model_validate(merged)
    except ValidationError as error:
        raise ValueError("; ".join(_explain(item) for item in error.errors())) from None


def _explain(item: Any) -> str:
    path = ".".join(str(part) for part in item["loc"])
    section = item["loc"][0]
    if item["type"] == "extra_forbidden":
        return f"unknown setting {path}; {section} has {', '.join(SECTIONS[section].model_fields)}"
    message = item["msg"].removeprefix("Value error, ")
    # A section's own check has named its fields.
    return (
        message if len(item["loc"]) == 1 and item["type"] == "value_error" else f"{path}={item['input']!r}: {message}"
    )
