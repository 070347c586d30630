"""Settings of index, score and evaluate."""

from typing import Literal

from pydantic import Field

from prvr_ray.config.base import Count, Positive, Settings, Share, Weight


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
    mode: Literal["auto", "exact", "fast"] = Field(
        "auto",
        description="auto, fast: select candidates in float16 or bf16, if the device multiplies those faster, with a "
        "proven error bound; exact: in float32; same answers",
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
    mode: Literal["auto", "exact", "fast"] = Field("auto", description="as score.mode; the figures are the same")
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
