"""Every setting of prvr_ray: one pydantic model per stage, the paper's defaults, and the presets.

Each field's description gives its meaning, its unit and its source. Settings are checked once, here; the rest of the
code takes plain values.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]


class Settings(BaseModel):
    """Base class of all sections: rejects unknown keys; instances are immutable.

    everyday: the fields that `--help` prints; `--help-all` also prints the others, which are advanced.
    """

    everyday: ClassVar[frozenset[str]] = frozenset()
    model_config = ConfigDict(extra="forbid", frozen=True)


class IngestSettings(Settings):
    """Turning videos and captions into features."""

    everyday = frozenset(
        (
            "encoder",
            "student_encoder",
            "fps",
            "sampling",
            "max_failure_share",
            "min_decoded_share",
            "retry",
            "limit",
            "num_decoders",
            "max_encoders",
            "encoder_gpus",
            "batch_frames",
        )
    )

    encoder: str = Field(
        "", description="the teacher: MODEL:PRETRAINED as open_clip lists it, or two local files as CONFIG:CHECKPOINT"
    )
    student_encoder: str = Field("", description="encoder of the student's inputs; empty: same as the teacher")
    fps: Positive = Field(1.0, description="frames per second to decode and encode")
    sampling: Literal["uniform", "keyframes"] = Field(
        "uniform",
        description="uniform: one frame every 1/fps seconds; keyframes: only the container's keyframes (fast)",
    )
    extensions: list[str] = Field(
        ["mp4", "m4v", "mov", "mkv", "webm", "avi", "flv", "3gp", "ts", "mpg", "mpeg", "wmv", "ogv"],
        description="file extensions of videos; other files in a folder are skipped",
    )
    segment_frames: Count = Field(
        256, le=1024, description="maximum frames per segment, the unit that is decoded, retried and written"
    )
    split_shares: dict[str, Share] = Field(
        {"train": 0.8, "val": 0.1, "test": 0.1}, description="fraction of each split among videos without a given split"
    )
    max_failure_share: Share = Field(0.05, description="exit with code 1 if a larger fraction of the videos fails")
    min_decoded_share: Share = Field(
        0.0,
        description="a video is a failure if a smaller fraction of it, or of any segment, can be decoded",
    )
    retry: str = Field("transient", description="failures to retry: transient, all or one error class")
    limit: int = Field(0, ge=0, description="maximum number of videos to ingest; 0: all")
    shard_bytes: Count = Field(64 * 2**20, le=256 * 2**20, description="approximate size of a feature shard")
    decode_timeout_s: Positive = Field(600.0, description="time limit for decoding a segment, seconds")
    decode_stall_s: Positive = Field(
        60.0, description="seconds without a decoded packet after which the decoder is considered hung"
    )
    decode_memory_bytes: Count = Field(4 * 2**30, description="memory limit of a decoder process")
    max_duration_s: Positive = Field(
        48 * 3600.0, description="maximum length of a video, seconds; a longer video is a failure"
    )
    max_pixels: Count = Field(
        8192 * 8192, description="maximum pixels per frame; a video with larger frames is a failure"
    )
    num_decoders: int = Field(0, ge=0, description="number of decoder processes; 0: one per CPU of the cluster")
    decoder_cpus: float = Field(0.0, ge=0, description="CPUs per decoder; 0: 1, or 0.5 if the encoder has no GPU")
    min_encoders: Count = Field(1, description="initial number of encoders")
    max_encoders: Count = Field(1, description="maximum number of encoders")
    encoder_gpus: float = Field(0.0, ge=0, description="GPUs per encoder; 0: run on the CPU")
    encoder_cpus: Positive = Field(0.5, description="CPUs per encoder")
    decoder_labels: dict[str, str] = Field({}, description="labels of the nodes that decoders may run on, name: value")
    encoder_labels: dict[str, str] = Field({}, description="labels of the nodes that encoders may run on, name: value")
    batch_frames: Count = Field(64, description="frames per forward pass of the encoder")


class StudentSettings(Settings):
    """Architecture of the student (section 3 of arXiv 2510.12283)."""

    everyday = frozenset(("hidden_dim", "max_frames", "max_tokens"))

    hidden_dim: Count = Field(384, description="hidden size of both branches")
    num_heads: Count = Field(4, description="attention heads; must divide hidden_dim")
    max_frames: Count = Field(
        128, description="maximum frames per student input; longer videos are sampled or cut into windows"
    )
    max_tokens: Count = Field(30, description="maximum tokens per query; later ones are dropped")
    branches: list[Literal["inheritance", "exploration"]] = Field(
        ["inheritance", "exploration"], min_length=1, max_length=2, description="branches to train"
    )
    inheritance_weight: Share = Field(0.7, description="weight of the inheritance branch in the fused score")
    exploration_weight: Share = Field(0.3, description="weight of the exploration branch in the fused score")

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
    """Distillation of the student; unless stated, defaults are the paper's for ActivityNet Captions."""

    everyday = frozenset(
        (
            "train_split",
            "validation_split",
            "num_epochs",
            "patience",
            "seed",
            "videos_per_batch",
            "precision",
            "lr",
            "dropout",
            "distillation_weight",
            "num_workers",
            "worker_gpus",
        )
    )

    train_split: str = Field("train", description="split to train on")
    validation_split: str = Field(
        "val", description="split used to choose the checkpoint; for the paper's protocol: test"
    )
    num_epochs: Count = Field(120, description="maximum number of epochs")
    patience: Count = Field(11, description="stop after this many epochs without a better validation SumR")
    seed: int = Field(9527, ge=0, description="seed of initial weights, batches, negatives and dropout")
    videos_per_batch: Count = Field(128, description="videos in a global batch, each with all its captions")
    videos_per_pass: int = Field(
        0, ge=0, description="videos that a worker encodes at a time, recomputing activations to save memory; 0: all"
    )
    precision: Literal["float32", "bf16", "float64"] = Field(
        "float32", description="bf16: autocast in the encoders; scores and losses stay float32; float64: for checks"
    )

    lr: Positive = Field(2.5e-4, description="peak learning rate")
    warmup: Share = Field(0.01, description="fraction of all steps spent in linear warm-up")
    weight_decay: float = Field(0.01, ge=0, description="weight decay, except for biases and LayerNorm")
    max_grad_norm: Positive = Field(1.0, description="each parameter's gradient is clipped to this L2 norm")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.25, description="dropout inside the attention blocks")
    input_dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.25, description="dropout around the input projection")

    margin: Positive = Field(0.2, description="margin of the triplet loss, in cosine")
    hard_pool_size: Count = Field(20, description="number of hardest negatives from which one is drawn")
    inheritance_nce_weight: Weight = Field(0.04, description="weight of the inheritance branch's contrastive loss")
    exploration_nce_weight: Weight = Field(0.04, description="weight of the exploration branch's contrastive loss")
    distillation: bool = Field(
        True, description="distil the teacher's frame scores; false: same as distillation_weight 0"
    )
    distillation_weight: Weight = Field(0.1, description="weight of frame distillation at epoch 0; 0: none")
    distillation_decay: Literal["exp", "linear", "sigmoid", "none"] = Field(
        "exp", description="how the distillation weight decays over the epochs"
    )
    distillation_decay_rate: Share = Field(0.95, description="factor per epoch, with distillation_decay=exp")
    distillation_linear_rate: Share = Field(
        0.01, description="decrease of the weight's factor per epoch, with distillation_decay=linear"
    )
    distillation_temperature: Positive = Field(0.2, description="temperature of the softmax over frames")
    distillation_reduction: Literal["sum", "mean"] = Field(
        "sum", description="reduction over a batch's queries; with sum (the paper) the loss grows with the batch"
    )
    inheritance_soft_targets: bool = Field(
        True, description="soften labels with the teacher's scores; false: hard labels"
    )
    exploration_soft_targets: bool = Field(
        True, description="soften labels with the branch's own scores; false: hard labels"
    )
    alpha: Share = Field(0.8, description="fraction of hard labels at epoch 0")
    alpha_floor: Share = Field(0.0, description="alpha decays to this, or to 0 if alpha starts below it")
    alpha_decay: Literal["sigmoid", "exp", "linear", "cosine", "none"] = Field(
        "sigmoid", description="how alpha decays over the epochs"
    )
    alpha_decay_rate: Share = Field(0.95, description="factor per epoch, with alpha_decay=exp")
    beta: Share = Field(0.8, description="hard fraction of a softened label at epoch 0")
    beta_floor: Share = Field(0.5, description="beta decays to this, or to 0 if beta starts below it")
    beta_decay: Literal["sigmoid", "exp", "linear", "cosine", "none"] = Field(
        "sigmoid", description="how beta decays over the epochs"
    )
    beta_decay_rate: Share = Field(0.95, description="factor per epoch, with beta_decay=exp")
    sigmoid_k: Annotated[float, Field(ge=100)] = Field(
        800.0, description="k of every sigmoid decay, k / (k + exp(100 * epoch / k)); smaller: decays sooner"
    )
    schedule_unit: Literal["epochs", "run"] = Field(
        "epochs",
        description="epochs: decays follow the epoch number (the paper); run: decays are stretched to num_epochs",
    )
    detach_soft_targets: bool = Field(False, description="stop gradients through the exploration branch's own targets")
    soft_target_rows: Literal["batch_order", "random"] = Field(
        "batch_order",
        description="which rows get hard labels: the caption-rich videos first (the paper), or random ones",
    )
    teacher_scores: Literal["auto", "raw", "logit_scale"] = Field(
        "auto",
        description="teacher's scores; raw: dot products of the stored vectors (the paper); logit_scale: logit_scale * "
        "cosine; auto: the encoder's own logit scale for ingested features, raw for imported ones",
    )
    logit_scale: Positive = Field(100.0, description="factor of the cosine, with teacher_scores=logit_scale")
    faithful_alignment: bool = Field(
        False, description="in training, resample the student's frames to the teacher's (as published), not the reverse"
    )

    teacher_noise: Weight = Field(
        0.0, description="noise added to the teacher's vectors, relative to their norm; for ablations"
    )

    checkpoint_steps: int = Field(0, ge=0, description="steps between checkpoints; 0: only at the end of each epoch")
    num_workers: Count = Field(1, description="number of data-parallel workers")
    min_workers: int = Field(
        0, ge=0, description="elastic training: continue with as few workers as this; 0: always num_workers"
    )
    worker_cpus: int = Field(
        0, ge=0, description="CPUs per worker; 0: an equal part of the CPUs, or 1 if the worker has a GPU"
    )
    worker_gpus: float = Field(0.0, ge=0, description="GPUs per worker; 0: run on the CPU")
    max_failures: int = Field(3, ge=0, description="number of lost workers after which training gives up")
    cache_folder: str = Field(
        "", description="node-local folder of the feature cache, kept for later runs; empty: prvr-ray-UID in /tmp"
    )


class IndexSettings(Settings):
    """Encoding a feature set with the student."""

    everyday = frozenset(("windowing", "window_frames", "overlap_frames", "num_indexers", "indexer_gpus"))

    windowing: Literal["whole", "windows"] = Field(
        "whole",
        description="whole: sample a long video down to the student's frame limit (the paper); windows: cut it up",
    )
    window_frames: int = Field(0, ge=0, description="maximum frames per window; 0: the student's frame limit")
    overlap_frames: int = Field(32, ge=0, description="frames that neighbouring windows share, at most half a window")
    shard_bytes: Count = Field(
        128 * 2**20,
        le=256 * 2**20,
        description="approximate size of an index shard; an indexer holds up to four",
    )
    pass_frames: Count = Field(8192, description="approximate number of frames in a forward pass of the student")
    num_indexers: Count = Field(1, description="number of indexers")
    indexer_cpus: Positive = Field(1.0, description="CPUs per indexer")
    indexer_gpus: float = Field(0.0, ge=0, description="GPUs per indexer; 0: run on the CPU")
    indexer_labels: dict[str, str] = Field({}, description="labels of the nodes that indexers may run on, name: value")


class ScoreSettings(Settings):
    """Exact top-k answers."""

    everyday = frozenset(("top_k", "mode", "num_moments", "num_scorers", "scorer_gpus"))

    top_k: Count = Field(100, description="number of videos per query")
    mode: Literal["exact", "fast"] = Field(
        "exact",
        description="fast: select candidates in bf16, if the device has it, with a proven error bound; same answers",
    )
    num_moments: int = Field(10, ge=0, description="number of top answers per query that get a moment")
    moment_threshold: Share = Field(
        0.5, description="score that a moment's frames exceed, scaled from the window's median (0) to its peak (1)"
    )
    query_block: Count = Field(65_536, description="queries in memory at once; every block of queries reads all shards")
    unit_bytes: Count = Field(
        512 * 2**20, description="approximate size of the shards in one unit of work; a scorer holds two shards"
    )
    num_scorers: int = Field(0, ge=0, description="number of scorers; 0: as many as the cluster has room for now")
    scorer_cpus: Positive = Field(1.0, description="CPUs per scorer")
    scorer_gpus: float = Field(0.0, ge=0, description="GPUs per scorer; 0: run on the CPU")
    scorer_labels: dict[str, str] = Field({}, description="labels of the nodes that scorers may run on, name: value")


class EvaluateSettings(Settings):
    """Measuring the recall of a run on a split."""

    everyday = frozenset(("protocol", "mode", "choose_weights", "evaluator_gpus"))

    protocol: Literal["held-out", "paper", "train"] = Field(
        "held-out",
        description="paper: the reported split also chose the checkpoint; train: it is the training split",
    )
    mode: Literal["exact", "fast"] = Field("exact", description="as score.mode; the figures are the same")
    choose_weights: bool = Field(
        False,
        description="choose the weights of the branches and the teacher on the run's validation split, and save them",
    )
    hubness_fraction: Weight = Field(
        0.5,
        description="fraction of hubness subtracted from scores in the row chosen+hubness (QB-Norm, CVPR 2022)",
    )
    hubness_neighbours: Count = Field(
        10, description="number of nearest training queries whose mean score is a video's hubness"
    )
    teacher_weight: Share = Field(0.5, description="weight of the teacher in the row teacher+student")
    ratio_edges: list[Share] = Field([0.2, 0.4], description="boundaries between the groups by moment-to-video ratio")
    iou_thresholds: list[Share] = Field(
        [0.3, 0.5, 0.7], description="IoU thresholds of R@1 for moments in the relevant video"
    )
    moment_threshold: Share = Field(0.5, description="as score.moment_threshold")
    evaluator_cpus: Positive = Field(1.0, description="CPUs of the evaluator")
    evaluator_gpus: float = Field(0.0, ge=0, description="GPUs of the evaluator; 0: run on the CPU")


# The default search space of `prvr tune`: SETTING: {KIND: [bounds]}, both ends included (prvr_ray.tuning.space).
# Ranges span about a factor of three around the paper's values. Only the ratio of the branch weights matters, so only
# one of them varies.
DEFAULT_SPACE: dict[str, dict[str, list[Any]]] = {
    "train.distillation_weight": {"loguniform": [0.01, 1.0]},
    "train.distillation_decay": {"choice": ["exp", "linear", "sigmoid", "none"]},
    "train.distillation_decay_rate": {"uniform": [0.85, 0.995]},
    "train.distillation_linear_rate": {"loguniform": [0.003, 0.03]},
    "train.distillation_reduction": {"choice": ["sum", "mean"]},
    "train.distillation": {"choice": [True, False]},
    "train.distillation_temperature": {"loguniform": [0.05, 1.0]},
    "train.alpha": {"uniform": [0.0, 1.0]},
    "train.alpha_floor": {"uniform": [0.0, 0.5]},
    "train.alpha_decay": {"choice": ["sigmoid", "exp", "linear", "cosine", "none"]},
    "train.alpha_decay_rate": {"uniform": [0.85, 0.995]},
    "train.beta": {"uniform": [0.0, 1.0]},
    "train.beta_floor": {"uniform": [0.0, 0.8]},
    "train.beta_decay": {"choice": ["sigmoid", "exp", "linear", "cosine", "none"]},
    "train.beta_decay_rate": {"uniform": [0.85, 0.995]},
    "train.sigmoid_k": {"loguniform": [300.0, 2000.0]},
    "train.schedule_unit": {"choice": ["epochs", "run"]},
    "train.inheritance_soft_targets": {"choice": [True, False]},
    "train.exploration_soft_targets": {"choice": [True, False]},
    "train.teacher_scores": {"choice": ["raw", "logit_scale"]},
    "train.logit_scale": {"loguniform": [10.0, 200.0]},
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
    """The hyperparameter search, its confirmation on several seeds, and the ablations."""

    everyday = frozenset(
        ("num_trials", "space", "scheduler", "grace_epochs", "trial_cpus", "trial_gpus", "confirm_top", "num_seeds")
    )

    num_trials: Count = Field(
        32, description="number of trials, including the base configuration; with pbt: size of the population"
    )
    space: dict[str, dict[str, list[Any]]] = Field(
        DEFAULT_SPACE, description="SETTING: {uniform | loguniform | int: [low, high]} or {choice: [value, ...]}"
    )
    points: list[dict[str, Any]] = Field(
        [], description="points to try right after the base, SETTING: value; settings left out keep the base's value"
    )
    sampler: Literal["tpe", "random"] = Field(
        "tpe", description="how later points are chosen; tpe learns from earlier trials"
    )
    seed: int = Field(0, description="seed of the sampler")
    scheduler: Literal["asha", "pbt", "none"] = Field(
        "asha",
        description="asha: stop trials that fall behind; pbt: population based training; none: train all to the end",
    )
    grace_epochs: Count = Field(
        5, description="asha: epochs before a trial may be stopped; pbt: epochs between perturbations"
    )
    reduction_factor: Annotated[int, Field(ge=2)] = Field(
        3, description="asha: one trial in this many continues after grace_epochs, grace_epochs * reduction_factor, ..."
    )
    trial_cpus: Positive = Field(1.0, description="CPUs per trial, for trials of one process (train.num_workers=1)")
    trial_gpus: float = Field(0.0, ge=0, description="GPUs per trial, fractions allowed; 0: run on the CPU")
    max_concurrent: int = Field(
        0,
        ge=0,
        description="trials at a time; 0: as many as fit on the cluster now, so an autoscaler adds nodes one by one",
    )
    confirm_top: int = Field(3, ge=0, description="number of best trials to train again on several seeds; 0: none")
    num_seeds: Annotated[int, Field(ge=2)] = Field(
        5, description="number of seeds in the confirmation and in ablations"
    )
    test_split: str = Field(
        "test", description="split that the confirmation reports once; never used to choose anything"
    )
    confidence: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.95, description="confidence level of the intervals; in a confirmation, of all candidates' intervals jointly"
    )
    teacher_noise: list[Annotated[float, Field(ge=0)]] = Field(
        [0.5, 1.0, 2.0], description="ablate: levels of noise on the teacher's vectors, relative to their norm"
    )


class ReportSettings(Settings):
    """The HTML page."""

    everyday = frozenset(("num_examples", "num_answers", "filmstrips"))

    num_examples: int = Field(4, ge=0, description="number of queries shown of each kind: best, worst, random")
    num_answers: Count = Field(5, description="number of videos shown for each of these queries")
    moment_threshold: Share = Field(0.5, description="as score.moment_threshold")
    filmstrips: bool = Field(True, description="show frames of the answers (downloads remote videos)")
    num_resamples: Count = Field(2000, description="number of bootstrap resamples for the intervals")
    confidence: Annotated[float, Field(gt=0, lt=1)] = Field(0.95, description="confidence level of the intervals")
    seed: int = Field(0, ge=0, description="seed of the resampling and of the random queries")


class DemoSettings(Settings):
    """The demo world."""

    everyday = frozenset(("seed", "num_videos"))

    seed: int = Field(0, ge=0, description="seed of the videos, their captions and the teacher")
    num_videos: dict[str, Count] = Field(
        {"train": 200, "val": 40, "test": 160},
        description="number of videos of each split; each has three described moments",
    )
    num_stills: Count = Field(6000, description="number of images to train the teacher on")
    teacher_steps: Count = Field(400, description="optimizer steps of the teacher, 64 images each")
    tune_epochs: Count = Field(10, description="maximum epochs per trial")


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
        "train": {"num_epochs": 30, "patience": 30, "videos_per_batch": 32, "lr": 5e-4},
        "tune": {"num_trials": 3, "grace_epochs": 2, "confirm_top": 0},
    },
}


class Config(Settings):
    """All sections together: read from `--config` and written beside every artifact."""

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
        values: section -> field -> value, as given in a YAML file or on the command line.
        preset: a name of PRESETS; `values` override it.

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
    # A section's own validator already names its fields.
    return (
        message if len(item["loc"]) == 1 and item["type"] == "value_error" else f"{path}={item['input']!r}: {message}"
    )
