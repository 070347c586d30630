"""Settings of the student and of its training, with the paper's defaults."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from prvr_ray.config.base import Count, Positive, Settings, Share, Weight


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
