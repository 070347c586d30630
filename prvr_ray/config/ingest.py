"""Settings of ingest."""

from typing import Literal

from pydantic import Field

from prvr_ray.config.base import Count, Positive, Settings, Share


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
