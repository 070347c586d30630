"""Every setting of prvr_ray: one pydantic model per stage, the paper's defaults, and the presets.

Each field's description gives its meaning, its unit and its source. Settings are checked once, here; the rest of the
code takes plain values.
"""

from typing import Any

from pydantic import ValidationError

from prvr_ray.config.base import Settings
from prvr_ray.config.ingest import IngestSettings
from prvr_ray.config.pages import DemoSettings, ReportSettings
from prvr_ray.config.search import EvaluateSettings, IndexSettings, ScoreSettings
from prvr_ray.config.train import StudentSettings, TrainSettings
from prvr_ray.config.tune import DEFAULT_SPACE, TuneSettings

__all__ = [
    "DEFAULT_SPACE",
    "DemoSettings",
    "EvaluateSettings",
    "IndexSettings",
    "IngestSettings",
    "ReportSettings",
    "ScoreSettings",
    "Settings",
    "StudentSettings",
    "TrainSettings",
    "TuneSettings",
]

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
        raise ValueError("; ".join(_explain_error(item) for item in error.errors())) from None


def _explain_error(item: Any) -> str:
    path = ".".join(str(part) for part in item["loc"])
    section = item["loc"][0]
    if item["type"] == "extra_forbidden":
        return f"unknown setting {path}; {section} has {', '.join(SECTIONS[section].model_fields)}"
    message = item["msg"].removeprefix("Value error, ")
    # A section's own validator already names its fields.
    return (
        message if len(item["loc"]) == 1 and item["type"] == "value_error" else f"{path}={item['input']!r}: {message}"
    )
