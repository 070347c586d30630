"""Settings of the report and of the demo."""

from typing import Annotated

from pydantic import Field

from prvr_ray.config.base import Count, Settings, Share


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
