"""The paper's own questions, as configurations to compare (arXiv 2510.12283: branches, dynamic distillation, dynamic
soft targets, and how good a teacher it takes)."""

from collections.abc import Mapping
from dataclasses import dataclass

from prvr_ray.config import Config, TrainSettings
from prvr_ray.tuning.comparison import Row, describe
from prvr_ray.tuning.space import Point, apply_point

_SOFT_TARGETS = {"train.inheritance_soft_targets": True, "train.exploration_soft_targets": True}


@dataclass(frozen=True)
class Question:
    """Variants of one part of the method; the first is what the others are compared with."""

    title: str
    variants: dict[str, Point]

    @property
    def reference(self) -> str:
        return next(iter(self.variants))


def questions(base: Config) -> list[Question]:
    """The questions, asked around a base configuration; what a question does not name is the base's."""
    weight = base.train.distillation_weight or TrainSettings().distillation_weight
    teacher: Point = {"train.distillation_weight": weight, "train.inheritance_soft_targets": True}
    no_teacher: Point = {"train.distillation_weight": 0.0, "train.inheritance_soft_targets": False}
    return [
        Question(
            "Are both branches needed?",
            {
                "both-branches": {"student.branches": ["inheritance", "exploration"]},
                "inheritance-only": {"student.branches": ["inheritance"]},
                "exploration-only": {"student.branches": ["exploration"]},
            },
        ),
        Question(
            "Does distillation help, and should it fade?",
            {
                "no-distillation": {"train.distillation_weight": 0.0},
                "static-distillation": {"train.distillation_weight": weight, "train.distillation_decay": "none"},
                **{
                    f"{decay}-distillation": {
                        "train.distillation_weight": weight,
                        "train.distillation_decay": decay,
                    }
                    for decay in ("exp", "linear", "sigmoid")
                },
            },
        ),
        Question(
            "Do soft targets help, and should they soften over time?",
            {
                "hard-targets": dict.fromkeys(_SOFT_TARGETS, False),
                "static-soft-targets": {**_SOFT_TARGETS, "train.alpha_decay": "none", "train.beta_decay": "none"},
                **{
                    f"{decay}-soft-targets": {
                        **_SOFT_TARGETS,
                        "train.alpha_decay": decay,
                        "train.beta_decay": decay,
                    }
                    for decay in ("sigmoid", "exp", "linear", "cosine")
                },
            },
        ),
        Question(
            "How good must the teacher be?",
            {
                "no-teacher": no_teacher,
                "teacher": teacher,
                **{f"teacher-noise-{noise:g}": {**teacher, "train.teacher_noise": noise} for noise in _noises(base)},
            },
        ),
    ]


def distinct(asked: list[Question], base: Config) -> tuple[dict[str, Point], dict[str, str]]:
    """The variants to train, each configuration once; and for every variant, the name that it is trained under."""
    trained: dict[str, Point] = {}
    trained_as: dict[str, str] = {}
    for name, point in (item for question in asked for item in question.variants.items()):
        config = apply_point(base, point)
        same = [known for known, other in trained.items() if apply_point(base, other) == config]
        trained_as[name] = same[0] if same else name
        trained.setdefault(trained_as[name], point)
    return trained, trained_as


def finding(question: Question, rows: Mapping[str, Row]) -> str:
    """What a question's rows show, in one sentence: on the test split, or without one on the validation split."""
    compared = []
    for name, row in rows.items():
        gain = row.test_gain or row.validation_gain
        if gain is None:
            compared += [f"{name} did not finish"] if name != question.reference else []
        elif gain.is_gain or gain.is_loss:
            compared.append(f"{name} is {'better' if gain.is_gain else 'worse'}, {describe(gain)}")
        else:
            compared.append(f"{name} does not differ beyond run-to-run spread, {describe(gain)}")
    return f"{question.title} Against {question.reference}, {'; '.join(compared)}."


def _noises(base: Config) -> list[float]:
    return sorted({noise for noise in base.tune.teacher_noise if noise > 0})
