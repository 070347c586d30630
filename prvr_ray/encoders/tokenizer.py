"""Makes a model's tokenizer, and counts the tokens of each text without padding."""

from typing import Any

import open_clip
import torch
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

from .checkpoint import shorten

Tokenizer = Any  # SimpleTokenizer | HFTokenizer, which are untyped


def make_tokenizer(name: str, registry_name: str, config: dict[str, Any]) -> Tokenizer:
    """Build the tokenizer of a model.

    Args:
        name: of the encoder, for messages.
        registry_name: open_clip's name of the model; empty for a local config.
        config: of the model.

    Raises:
        ValueError: a package is not installed, or a file cannot be downloaded.
    """
    try:
        return open_clip.get_tokenizer(registry_name) if registry_name else _make_local(config["text_cfg"])
    except ImportError as error:
        raise ValueError(
            f"encoder {name!r}: its tokenizer needs the package {error.name}; pip install 'prvr_ray[transformers]'"
        ) from error
    except Exception as error:  # errors of transformers and of the download have no common base
        raise ValueError(
            f"encoder {name!r}: cannot make its tokenizer: {shorten(error)}; text_cfg.hf_tokenizer_name of a local "
            "model config may name a folder that contains it"
        ) from error


def count_tokens(tokenizer: Tokenizer, tokens_NT: torch.Tensor) -> torch.Tensor:
    """Count the tokens of each text up to and including its end-of-text token: (N,) int64."""
    if isinstance(tokenizer, SimpleTokenizer):
        return tokens_NT.argmax(1) + 1  # the end-of-text token has the highest ID; 0 is both padding and "!"
    inner = tokenizer.tokenizer
    padded_with_end = inner.pad_token_id == inner.eos_token_id  # then the first padding token ends the text
    return ((tokens_NT != inner.pad_token_id).sum(1) + int(padded_with_end)).clamp(max=tokens_NT.shape[1])


def _make_local(text_config: dict[str, Any]) -> Tokenizer:
    context_length = text_config.get("context_length", 77)
    options = text_config.get("tokenizer_kwargs") or {}
    if text_config.get("hf_tokenizer_name"):
        return HFTokenizer(
            text_config["hf_tokenizer_name"],
            context_length=context_length,
            tokenizer_mode=text_config.get("tokenizer_mode"),
            **options,
        )
    return SimpleTokenizer(context_length=context_length, **options)
