"""open_clip image and text towers: what turns frames and captions into teacher vectors and student inputs."""

from .encoder import Encoder, load_encoder
from .spec import EncoderSpec, describe_encoder

__all__ = ["Encoder", "EncoderSpec", "describe_encoder", "load_encoder"]
