"""One trial: what is planned for it, and the record that is kept of it in storage."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from prvr_ray.config import Config
from prvr_ray.tuning.space import Point, apply_point

State = Literal["finished", "stopped", "failed"]


@dataclass(frozen=True)
class PlannedTrial:
    """A trial that is to run. A small value that travels to its process.

    Attributes:
        name: of its folder.
        point: the values that the space varies.
        config: the base with the point in it; None where the configuration refuses the point.
        refusal: why it does.
    """

    name: str
    point: Point
    config: Config | None
    refusal: str | None = None

    @property
    def values(self) -> dict[str, Any]:
        """The trial as Ray Tune carries it. Name and point are beside it as plain values: of a population, Ray keeps a
        placeholder in place of any other object until the trial starts."""
        return {"trial": {"name": self.name, "point": self.point, "planned": self}}

    @classmethod
    def plan(cls, name: str, point: Point, base: Config) -> "PlannedTrial":
        """Put a point into the base, once for all that ask."""
        try:
            return cls(name, point, apply_point(base, point))
        except ValueError as error:  # values that do not go together are a finding about this point
            return cls(name, point, None, f"{type(error).__name__}: {error}")


@dataclass(frozen=True)
class Trial:
    """One trial that will not run again.

    Attributes:
        name: of its folder. Trials of a search are numbered, 0000 is the base configuration.
        point: the values that the space varied.
        state: finished; stopped early by the scheduler; failed, with a reason.
        curve: epoch, from 1 -> validation SumR. Empty where it failed before its first epoch.
        seconds: from its start to its end, all attempts together.
        outcome: what the objective returned, such as the checkpoint's path; empty unless it finished.
    """

    name: str
    point: Point
    state: State
    curve: dict[int, float]
    seconds: float
    reason: str | None = None
    outcome: dict[str, Any] = field(default_factory=dict)

    @property
    def best(self) -> float | None:
        """The best validation SumR of any epoch."""
        return max(self.curve.values(), default=None)

    def to_json(self) -> dict[str, Any]:
        """The record as JSON values; epochs become strings, as JSON has it."""
        curve = {str(epoch): sumr for epoch, sumr in self.curve.items()}
        return {**dataclasses.asdict(self), "curve": curve, "best": self.best}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Trial":
        """Read what `to_json` gave."""
        curve = {int(epoch): sumr for epoch, sumr in values["curve"].items()}
        return cls(**{key: value for key, value in values.items() if key != "best"} | {"curve": curve})
