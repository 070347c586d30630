"""Resolves an encoder's name, `MODEL:PRETRAINED`, to an open_clip config, a weights file and a checked description.

This module reads configs and checks weights; encoder.py runs the towers.
"""

import difflib
import hashlib
import json
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.pretrained import download_pretrained, get_pretrained_cfg
from open_clip.transform import PreprocessCfg, merge_preprocess_dict

from .checkpoint import load_weights, read_state, shorten
from .files import fetch_local_copy
from .tokenizer import make_tokenizer

Model = Any  # an open_clip model: CLIP, CustomTextCLIP and CoCa share methods but no base type


@dataclass(frozen=True)
class EncoderSpec:
    """Everything that determines an encoder's vectors: two specs that differ only in `name` give the same vectors.

    `name` records where the files were when the spec was written; `find_encoder` uses it as a hint.
    """

    name: str
    weights_sha256: str
    image_size: tuple[int, int]  # height, width in pixels of the frames that encode_frames takes
    resize_mode: str  # shortest (then centre crop) | longest (then pad) | squash
    interpolation: str  # bicubic | bilinear | nearest
    fill_color: int  # 0-255, the padding of resize_mode=longest
    mean: tuple[float, ...]  # per channel, RGB, of pixels in [0, 1]
    std: tuple[float, ...]
    embed_dim: int  # of frame vectors and pooled text vectors
    token_dim: int  # of per-token text states
    context_length: int  # in tokens; longer texts are cut
    logit_scale: float | None  # multiplies cosines before a softmax, as trained; None: not in the weights file
    causal_text: bool  # a token's state depends only on the words up to it
    config_sha256: str  # of the model config: the same weights in another architecture give other vectors


@dataclass(frozen=True)
class EncoderFiles:
    """An encoder's name resolved to a model config and a weights file, which has not been read yet."""

    name: str
    registry_name: str  # open_clip's name of the model; empty for a local model config
    config: dict[str, Any]
    preprocess: dict[str, Any]
    weights: Path


def describe_encoder(name: str) -> EncoderSpec:
    """Check an encoder's name, config and checkpoint, and describe its inputs and vectors without loading its weights.

    Args:
        name: `MODEL:TAG` of open_clip's registry (its weights are downloaded once into open_clip's cache),
            `MODEL:/path/to/checkpoint` (frames are prepared as for MODEL's released weights, if these agree), or
            `/path/to/model.json:/path/to/checkpoint`.

    Raises:
        ValueError: the name is unknown (close matches are listed), or the checkpoint is missing or does not fit.
    """
    files = resolve_encoder(name)
    make_tokenizer(name, files.registry_name, files.config)
    with torch.device("meta"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*which is a no-op")  # one warning per weight; the no-op is intended
        model = build_model(files)
    return describe_model(files, model)


def resolve_encoder(name: str) -> EncoderFiles:
    """Find the model config and the weights file of an encoder; see `describe_encoder` for names and errors."""
    config_path, is_local, weights = name.partition(".json:")
    if is_local:
        return _resolve_local_config(name, config_path + ".json", weights)
    model, _, pretrained = name.partition(":")
    config = open_clip.get_model_config(model) if model in open_clip.list_models() else None
    if config is None or not pretrained:
        raise ValueError(
            f"encoder {name!r} is not MODEL:PRETRAINED with a model of open_clip"
            f"{_close_matches(model, open_clip.list_models())}; for example ViT-B-32:laion2b_s34b_b79k, "
            f"ViT-B-32:/path/to/checkpoint or /path/to/model.json:/path/to/checkpoint"
        )
    tag_config = get_pretrained_cfg(model, pretrained)
    if tag_config:
        _check_activation(name, model, config, tag_config)
        return EncoderFiles(name, model, config, tag_config, _download(name, tag_config))
    if "/" not in pretrained and not Path(pretrained).is_file():
        tags = open_clip.list_pretrained_tags_by_model(model)
        raise ValueError(
            f"encoder {name!r}: {pretrained!r} is neither a tag nor a file{_close_matches(pretrained, tags)}; "
            f"tags of {model}: {', '.join(tags) or 'none'}"
        )
    checkpoint = _existing_file(name, pretrained)
    return EncoderFiles(name, model, config, _preprocess_of_tags(name, model), checkpoint)


def build_model(files: EncoderFiles) -> Model:
    """Create the model with the weights of its checkpoint: float32, eval mode, on torch's current default device.

    On the `meta` device no weights are copied: the call checks that config and checkpoint fit.

    Raises:
        ValueError: open_clip cannot build the config, or the checkpoint does not fit it.
    """
    try:
        model = _create(files.config)
    except Exception as error:  # open_clip does not validate configs: a wrong key may raise anything
        raise ValueError(f"encoder {files.name!r}: its model config does not build: {shorten(error)}") from error
    try:
        load_weights(model, files.weights)
    except PermissionError as error:
        raise ValueError(f"encoder {files.name!r}: no permission to read {files.weights}") from error
    except Exception as error:  # of a dozen types: assertions, key errors, safetensors' own
        reason = error if type(error) is ValueError else shorten(error)  # our own ValueErrors are one line already
        raise ValueError(
            f"encoder {files.name!r}: checkpoint {files.weights} does not fit the model: {reason}"
        ) from error
    return model.eval()


def describe_model(files: EncoderFiles, model: Model) -> EncoderSpec:
    """Describe a built model, whose weights may be on the meta device."""
    preprocess = PreprocessCfg(**merge_preprocess_dict(PreprocessCfg(), files.preprocess))
    size = model.visual.image_size
    text = get_text_tower(model)
    return EncoderSpec(
        name=files.name,
        weights_sha256=_sha256(files.weights, files.weights.stat().st_mtime_ns),
        image_size=(size, size) if isinstance(size, int) else tuple(size),
        resize_mode=preprocess.resize_mode,
        interpolation=preprocess.interpolation,
        fill_color=preprocess.fill_color,
        mean=tuple(preprocess.mean),
        std=tuple(preprocess.std),
        embed_dim=files.config["embed_dim"],
        token_dim=text.ln_final.normalized_shape[0] if hasattr(text, "ln_final") else text.config.hidden_size,
        context_length=model.context_length,
        logit_scale=_logit_scale(files, model),
        causal_text=getattr(text, "attn_mask", None) is not None,
        config_sha256=hashlib.sha256(json.dumps(files.config, sort_keys=True).encode()).hexdigest(),
    )


def _logit_scale(files: EncoderFiles, model: Model) -> float | None:
    """Return the scale of the cosines; for a model on the meta device, read it from the weights file."""
    scale = model.logit_scale
    if scale.is_meta:
        scale = _read_logit_scale(files.weights, files.weights.stat().st_mtime_ns)
    return None if scale is None else float(scale.detach().float().exp())


@lru_cache(maxsize=16)
def _read_logit_scale(path: Path, mtime_ns: int) -> torch.Tensor | None:
    if path.suffix in (".npz", ".npy"):  # JAX weights, whose names open_clip translates only on loading
        return None
    state = read_state(path)
    return next((state[name] for name in state if name.endswith("logit_scale")), None)


def get_text_tower(model: Model) -> Model:
    """Return the module with `transformer` and `ln_final`: a classic CLIP model, or `text` of a custom one."""
    return getattr(model, "text", model)


def _resolve_local_config(name: str, config_path: str, weights: str) -> EncoderFiles:
    """Read a model config file: a bare model config, or open_clip_config.json's {model_cfg, preprocess_cfg}."""
    try:
        content = json.loads(_existing_file(name, config_path).read_text(encoding="utf-8"))
        config = content.get("model_cfg", content)
        missing = {"embed_dim", "vision_cfg", "text_cfg"} - set(config)
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError, TypeError) as error:
        raise ValueError(f"encoder {name!r}: {config_path} is not a model config: {shorten(error)}") from error
    if missing:
        raise ValueError(f"encoder {name!r}: {config_path} has no {', '.join(sorted(missing))}")
    return EncoderFiles(name, "", config, content.get("preprocess_cfg", {}), _existing_file(name, weights))


def _existing_file(name: str, path: str) -> Path:
    try:
        found = fetch_local_copy(path)
    except OSError as error:
        raise ValueError(f"encoder {name!r}: {error}") from error
    if not found.is_file():
        raise ValueError(f"encoder {name!r}: there is no file {path!r}")
    return found


def _preprocess_of_tags(name: str, model: str) -> dict[str, Any]:
    """Return the preprocessing on which all released weights agree: a checkpoint file does not record its own."""
    tags = open_clip.list_pretrained_tags_by_model(model)
    of_tags = [merge_preprocess_dict(PreprocessCfg(), get_pretrained_cfg(model, tag)) for tag in tags]
    first, *others = of_tags or [{}]
    if any(other != first for other in others):
        raise ValueError(
            f"encoder {name!r}: released weights of {model} differ in their preprocessing; give this file's (mean, std,"
            " interpolation, resize_mode) as preprocess_cfg beside model_cfg: /path/to/model.json:/path/to/checkpoint"
        )
    return first


def _check_activation(name: str, model: str, config: dict[str, Any], tag_config: dict[str, Any]) -> None:
    """Refuse weights trained with the other GELU: open_clip only warns, and the vectors would be wrong."""
    if bool(tag_config.get("quick_gelu")) == bool(config.get("quick_gelu")):
        return
    other = model.removesuffix("-quickgelu") if config.get("quick_gelu") else f"{model}-quickgelu"
    tag = name.partition(":")[2]
    raise ValueError(f"encoder {name!r}: its weights were trained with the other GELU; use {other}:{tag}")


def _download(name: str, tag_config: dict[str, Any]) -> Path:
    try:
        return Path(download_pretrained(tag_config))
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"encoder {name!r}: its weights could not be downloaded ({shorten(error)}); "
            f"download them elsewhere and name the file: {name.split(':')[0]}:/path/to/checkpoint"
        ) from error


def _create(config: dict[str, Any]) -> Model:
    """Build the class that open_clip uses for a config, without looking for weights of the individual towers."""
    options = {key: value for key, value in config.items() if key != "custom_text"}
    options["text_cfg"] = {**config["text_cfg"], "hf_model_pretrained": False}
    if "multimodal_cfg" in config:
        return open_clip.CoCa(**options)
    is_custom = config.get("custom_text") or "hf_model_name" in config["text_cfg"]
    return open_clip.CustomTextCLIP(**options) if is_custom else open_clip.CLIP(**options)


@lru_cache(maxsize=16)
def _sha256(path: Path, mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _close_matches(name: str, known: Iterable[str]) -> str:
    matches = difflib.get_close_matches(name, list(known), n=3)
    return f"; close matches: {', '.join(matches)}" if matches else ""
