"""The paper's own questions, as configurations to compare (arXiv 2510.12283: branches, dynamic distillation, dynamic
soft targets, and how good a teacher it takes)."""

from collections.abc import Mapping
from dataclasses import dataclass

from prvr_ray.config import Config, TrainSettings
from prvr_ray.tuning.seed_comparison import Row
from prvr_ray.tuning.space import Point, apply_point
from prvr_ray.tuning.statistics import Difference

_SOFT_TARGETS = {"train.inheritance_soft_targets": True, "train.exploration_soft_targets": True}


_NOISE = "train.teacher_noise"


@dataclass(frozen=True)
class Question:
    """Variants of one part of the method; the first is what the others are compared with."""

    title: str
    variants: dict[str, Point]

    @property
    def reference(self) -> str:
        return next(iter(self.variants))


def list_questions(base: Config) -> list[Question]:
    """The questions, asked around a base configuration; what a question does not name is the base's."""
    distillations, soft_targets = _distillations(base), _soft_targets()
    return [
        Question(
            "Are both branches needed?",
            {
                "both-branches": {"student.branches": ["inheritance", "exploration"]},
                "inheritance-only": {"student.branches": ["inheritance"]},
                "exploration-only": {"student.branches": ["exploration"]},
            },
        ),
        Question("Does distillation help?", {"no-distillation": {"train.distillation_weight": 0.0}, **distillations}),
        Question("Should distillation fade?", distillations),
        Question("Do soft targets help?", {"hard-targets": dict.fromkeys(_SOFT_TARGETS, False), **soft_targets}),
        Question("Should soft targets soften over time?", soft_targets),
        Question("How good must the teacher be?", _teachers(base)),
        *_fading(base),
    ]


def _fading(base: Config) -> list[Question]:
    """The paper's own claim: distillation should fade, the more so the worse the teacher is."""
    distillations = _distillations(base)
    return [
        Question(
            f"Should distillation fade with teacher noise {noise:g}?",
            {
                f"{kind}-distillation-noise-{noise:g}": {**distillations[f"{kind}-distillation"], _NOISE: noise}
                for kind in ("static", "exp", "linear")
            },
        )
        for noise in _noises(base)
    ]


def _noises(base: Config) -> list[float]:
    return sorted({noise for noise in base.tune.teacher_noise if noise > 0})


def _distillations(base: Config) -> dict[str, Point]:
    weight = _distillation_weight(base)
    decays = {"static": "none", "exp": "exp", "linear": "linear", "sigmoid": "sigmoid"}
    return {
        f"{name}-distillation": {"train.distillation_weight": weight, "train.distillation_decay": decay}
        for name, decay in decays.items()
    }


def _soft_targets() -> dict[str, Point]:
    decays = {"static": "none", **{decay: decay for decay in ("sigmoid", "exp", "linear", "cosine")}}
    return {
        f"{name}-soft-targets": {**_SOFT_TARGETS, "train.alpha_decay": decay, "train.beta_decay": decay}
        for name, decay in decays.items()
    }


def _teachers(base: Config) -> dict[str, Point]:
    taught: Point = {"train.distillation_weight": _distillation_weight(base), "train.inheritance_soft_targets": True}
    return {
        "no-teacher": {"train.distillation_weight": 0.0, "train.inheritance_soft_targets": False},
        "teacher": taught,
        **{f"teacher-noise-{noise:g}": {**taught, _NOISE: noise} for noise in _noises(base)},
    }


def _distillation_weight(base: Config) -> float:
    """The base's; the paper's where the base has none, or there would be nothing to compare."""
    return base.train.distillation_weight or TrainSettings().distillation_weight


def deduplicate(asked: list[Question], base: Config) -> tuple[dict[str, Point], dict[str, str]]:
    """The variants to train, each configuration once; and for every variant, the name that it is trained under."""
    trained: dict[str, Point] = {}
    trained_as: dict[str, str] = {}
    configs: dict[str, Config] = {}
    for name, point in (item for question in asked for item in question.variants.items()):
        config = apply_point(base, point)
        trained_as[name] = next((known for known, other in configs.items() if other == config), name)
        configs.setdefault(trained_as[name], config)
        trained.setdefault(trained_as[name], point)
    return trained, trained_as


def state_finding(question: Question, rows: Mapping[str, Row]) -> str:
    """What a question's rows show on the validation split, in one sentence; the test split decides nothing."""
    if rows[question.reference].validation is None:
        return f"{question.title} {question.reference} did not finish, so nothing can be compared with it."
    others = {name: row for name, row in rows.items() if name != question.reference}
    gains = {name: row.validation_gain for name, row in others.items()}
    better = [name for name, gain in gains.items() if gain and gain.is_gain]
    worse = [name for name, gain in gains.items() if gain and gain.is_loss]
    level = [name for name, gain in gains.items() if gain and not (gain.is_gain or gain.is_loss)]
    unknown = [name for name, gain in gains.items() if gain is None]
    clauses = [
        *_clause(better, "is better", "are better", gains),
        *_clause(worse, "is worse", "are worse", gains),
        *_clause(level, "does not differ beyond run-to-run spread", "do not differ beyond run-to-run spread"),
        *_clause(unknown, "did not finish", "did not finish"),
    ]
    return f"{question.title} Compared with {question.reference} on the validation split, {'; '.join(clauses)}."


def _clause(
    names: list[str], one: str, several: str, gains: Mapping[str, Difference | None] | None = None
) -> list[str]:
    """`a and b are better (+2.0 and +1.0 SumR)`; nothing of nothing."""
    if not names:
        return []
    differences = [f"{gain.mean:+.1f}" for name in names if gains and (gain := gains[name])]
    how_much = f" ({_list_in_words(differences)} SumR)" if differences else ""
    return [f"{_list_in_words(names)} {one if len(names) == 1 else several}{how_much}"]


def _list_in_words(items: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(items[:-1]), items[-1]]))
