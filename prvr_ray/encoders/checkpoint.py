"""Reads checkpoints in the forms in which people save them: safetensors or torch files, wrapped or prefixed.

Nothing in a checkpoint is executed: torch files are read with `weights_only`.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from open_clip.convert import convert_state_dict
from open_clip.factory import load_checkpoint, resize_pos_embed, resize_text_pos_embed
from open_clip.model import convert_to_custom_text_state_dict
from safetensors.torch import load_file

Model = Any
State = dict[str, torch.Tensor]

# Keys under which trainers save weights, and prefixes that DistributedDataParallel, torch.compile and others add.
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.", "model.", "clip_model.", "clip.")
_NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size")  # OpenAI's archives hold these as tensors
_NUMPY = [np.dtype, np.ndarray, *(type(np.dtype(kind)) for kind in ("f8", "f4", "f2", "i8", "i4", "u1", "?"))]
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_MOST_WORDS = 40  # kept of another library's message


def load_weights(model: Model, weights: Path) -> None:
    """Load a checkpoint into an open_clip model. On the `meta` device nothing is copied, only checked.

    Raises:
        ValueError: the checkpoint cannot be read or does not fit the model. The message says what to do.
        PermissionError: no permission to read the file.
    """
    if weights.suffix in (".npz", ".npy"):  # big_vision's formats, which only open_clip's loader reads
        load_checkpoint(model, str(weights))
        return
    model.load_state_dict(_fit(read_state(weights), model), strict=True)


def read_state(weights: Path) -> State:
    """Read a checkpoint's weights by name, without wrappers and prefixes. Files are memory-mapped where possible.

    Raises:
        ValueError: as `load_weights`.
    """
    with weights.open("rb"):
        pass  # raises PermissionError; the libraries below report it in many other ways
    content: Any = load_file(weights) if weights.suffix == ".safetensors" else _read_torch(weights)
    state = _strip(_unwrap(content))
    if not state or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ValueError(f"it holds no weights, but {', '.join(map(str, list(state)[:5])) or 'nothing'}")
    return {name: value for name, value in state.items() if name not in _NOT_WEIGHTS}


def shorten(error: BaseException) -> str:
    """Shorten another library's error to one line without colours: torch lists every weight on its own line."""
    lines = [line.strip() for line in _ANSI.sub("", str(error)).splitlines() if line.strip()]
    words = " ".join(lines[:2]).split()
    return " ".join(words[:_MOST_WORDS]) + (" ..." if len(words) > _MOST_WORDS else "") or type(error).__name__


def _read_torch(weights: Path) -> Any:
    allowed: list[Any] = [np.float64(0).__reduce__()[0], *_NUMPY]  # trainers save numbers beside the weights
    try:
        with torch.serialization.safe_globals(allowed):
            try:
                return torch.load(weights, map_location="cpu", weights_only=True, mmap=True)
            except (RuntimeError, ValueError) as error:
                if "mmap" not in str(error):
                    raise
                return torch.load(weights, map_location="cpu", weights_only=True)  # the format of torch before 1.6
    except Exception as error:
        raise ValueError(_explain(error, weights)) from error


def _explain(error: Exception, weights: Path) -> str:
    """Say why torch refuses a file, with the command that converts it."""
    text = _ANSI.sub("", str(error))
    saved = weights.with_suffix(".resaved.pt")
    if "TorchScript" in text:
        load = f"torch.jit.load('{weights}', map_location='cpu').state_dict()"
        return (
            f"it is a TorchScript archive; save its weights: python -c \"import torch; torch.save({load}, '{saved}')\""
        )
    unsupported = re.search(r"(?:GLOBAL|Unsupported (?:global|class)[^\w]*)\s*([\w.]+)", text)
    if unsupported:
        load = f"torch.load('{weights}', map_location='cpu', weights_only=False)"
        return (
            f"it holds {unsupported[1]}, which only Python code could load. If you trust the file, save its weights "
            f"alone: python -c \"import torch; c = {load}; torch.save(c.get('state_dict', c), '{saved}')\""
        )
    return shorten(error)


def _unwrap(content: Any) -> Mapping[str, Any]:
    while isinstance(content, Mapping):
        wrapped = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if wrapped is None:
            return content
        content = wrapped
    raise ValueError(f"it holds a {type(content).__name__}, not weights by name")


def _strip(state: Mapping[str, Any]) -> dict[str, Any]:
    """Remove the prefixes that all names share."""
    names = list(state)
    for _ in names[:4]:  # wrappers may be nested
        prefix = next((prefix for prefix in _PREFIXES if all(name.startswith(prefix) for name in names)), "")
        names = [name[len(prefix) :] for name in names]
    return dict(zip(names, state.values(), strict=True))


def _fit(state: State, model: Model) -> State:
    """Convert weights of other projects and older versions, as open_clip's load_checkpoint does before loading."""
    state = convert_state_dict(model, state)
    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    for name in ("logit_scale", "logit_bias"):
        parameter = getattr(model, name, None)
        if name in state and parameter is not None:
            state[name] = state[name].reshape(parameter.shape)
    if "logit_bias" not in state and getattr(model, "logit_bias", None) is not None:
        state["logit_bias"] = torch.zeros_like(state["logit_scale"])
    position_ids = "text.transformer.embeddings.position_ids"  # of transformers before 4.31
    if position_ids in state and not hasattr(model, position_ids):
        del state[position_ids]
    resize_pos_embed(state, model)
    resize_text_pos_embed(state, model)
    return state
