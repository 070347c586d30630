"""Finds texts longer than an encoder's context. The encoder truncates them, so their ends are never searched."""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import open_clip

from .tokenizer import Tokenizer, count_tokens, make_tokenizer

_NUM_NAMED = 5


def find_long_texts(encoder: Mapping[str, Any], names: Sequence[str], texts: Sequence[str]) -> dict[str, Any]:
    """Count the texts that an encoder truncates.

    Args:
        encoder: its part of a feature set's spec; the spec of an imported set has no context_length.
        names: of the texts, for examples.

    Returns:
        `texts_cut`: their count, the encoder's `context_length` in tokens and a few names. Empty if there are none or
        the context length is unknown.
    """
    context_length = encoder.get("context_length")
    if context_length is None:
        return {}
    # A token covers at least one byte, plus one each for start and end: most texts need not be tokenized.
    places = [place for place, text in enumerate(texts) if len(text.encode()) + 2 > context_length]
    if places:
        tokenizer = _tokenizer_of(encoder["name"], context_length)
        tokens_NT = tokenizer([texts[place] for place in places], context_length=context_length + 1)
        num_tokens_N = count_tokens(tokenizer, tokens_NT).tolist()
        places = [place for place, count in zip(places, num_tokens_N, strict=True) if count > context_length]
    if not places:
        return {}
    such_as = [names[place] for place in places[:_NUM_NAMED]]
    return {"texts_cut": {"count": len(places), "context_length": context_length, "such_as": such_as}}


@lru_cache(maxsize=2)
def _tokenizer_of(name: str, context_length: int) -> Tokenizer:
    """Make an encoder's tokenizer without its weights; CLIP's own if the encoder's config no longer exists."""
    model, _, _ = name.partition(":")
    config_file = Path(name.partition(".json:")[0] + ".json")
    if model in open_clip.list_models():
        return make_tokenizer(name, model, {})
    if not config_file.is_file():
        return make_tokenizer(name, "", {"text_cfg": {"context_length": context_length}})
    content = json.loads(config_file.read_text(encoding="utf-8"))
    return make_tokenizer(name, "", content.get("model_cfg", content))
