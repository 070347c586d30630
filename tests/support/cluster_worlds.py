"""A small world for clusters: rendered videos, and a random CLIP that encodes them."""

import json
from pathlib import Path

import numpy as np
import open_clip
import torch
from safetensors.torch import save_file

from prvr_ray.encoders import describe_encoder, load_encoder
from prvr_ray.video.container import Limits
from prvr_ray.video.frames import FrameSpec
from prvr_ray.video.packets import Sampling
from prvr_ray.video.segments import read_segments
from support.rendering import render

NUM_FRAMES = 6  # of one video at 1 frame/s
_CONFIG = {
    "embed_dim": 24,
    # Some 0.2 s a frame on one core: work outlasts the start of a second worker, and can be interrupted.
    "vision_cfg": {"image_size": 96, "patch_size": 8, "layers": 8, "width": 384, "head_width": 64},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


def render_videos(folder: Path, num_videos: int) -> Path:
    """Videos of six seconds; returns their folder."""
    folder.mkdir(parents=True)
    first = render(folder / "00.mp4", 10 * NUM_FRAMES, fps=10).read_bytes()
    for number in range(1, num_videos):
        (folder / f"{number:02d}.mp4").write_bytes(first)
    return folder


def random_encoder(folder: Path) -> str:
    """The name of an encoder whose weights are random."""
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    model = open_clip.CLIP(**_CONFIG)
    save_file({name: value.clone() for name, value in model.state_dict().items()}, folder / "weights.safetensors")
    (folder / "model.json").write_text(json.dumps({"model_cfg": _CONFIG}))
    return f"{folder}/model.json:{folder}/weights.safetensors"


def vectors_of(video: Path, encoder: str) -> np.ndarray:
    """(F, D) of a video at 1 frame/s, from one process: no Ray, no batches across videos."""
    spec = describe_encoder(encoder)
    frame_spec = FrameSpec(spec.image_size, spec.resize_mode, spec.interpolation, spec.fill_color)
    (whole,) = read_segments(str(video), Sampling(1.0), [frame_spec], Limits())
    return load_encoder(encoder).encode_frames(whole.frames[0])
