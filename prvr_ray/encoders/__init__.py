"""open_clip image and text towers, which turn frames and captions into teacher vectors and student inputs."""

from .address import find_encoder, make_absolute, make_portable
from .encoder import Encoder, load_encoder
from .spec import EncoderSpec, describe_encoder
from .text_length import find_long_texts

__all__ = [
    "Encoder",
    "EncoderSpec",
    "describe_encoder",
    "find_encoder",
    "find_long_texts",
    "load_encoder",
    "make_absolute",
    "make_portable",
]
