"""A small CLIP with random weights, for tests that encode."""

import json
from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file

CONFIG = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "layers": 2, "width": 32, "head_width": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 40, "heads": 2, "layers": 2},
}
PREPROCESS = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bilinear", "resize_mode": "squash"}


def write_small_clip(
    folder: Path, seed: int = 3, image_size: int = 32, embed_dim: int = 24, text_width: int = 40
) -> tuple[str, torch.nn.Module]:
    """Its name, `config.json:weights`, and the plain open_clip model."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "embed_dim": embed_dim,
        "vision_cfg": {**CONFIG["vision_cfg"], "image_size": image_size},
        "text_cfg": {**CONFIG["text_cfg"], "width": text_width},
    }
    torch.manual_seed(seed)
    model = open_clip.CLIP(**config).eval()
    save_file({key: value.clone() for key, value in model.state_dict().items()}, folder / "weights.safetensors")
    (folder / "model.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": PREPROCESS}))
    return f"{folder}/model.json:{folder}/weights.safetensors", model
