"""What is kept of one trial: the record that stands in storage, feeds the sampler again and is drawn in the report."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from prvr_ray.tuning.space import Point

State = Literal["finished", "stopped", "failed"]


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
