"""Settings of tune and ablate, and the default search space."""

from typing import Annotated, Any, Literal

from pydantic import Field

from prvr_ray.config.base import Count, Positive, Settings

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
