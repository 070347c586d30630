"""An encoder at work: frames and texts in, vectors out.

Shapes: F frames, N texts, T tokens, D vector dimensions, H and W pixels.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import open_clip
import torch
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

from .spec import EncoderFiles, EncoderSpec, build_model, encoder_spec, resolve_encoder, text_tower

Out = TypeVar("Out")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Encoder:
    """One open_clip model on one device. `spec` describes its vectors, `logit_scale` is the factor of its cosines."""

    def __init__(self, files: EncoderFiles, device: torch.device, dtype: torch.dtype, micro_batch: int):
        model = build_model(files)
        self.spec: EncoderSpec = encoder_spec(files, model)
        self.logit_scale = float(model.logit_scale.detach().exp())
        self._model = model.to(device, dtype)
        self._tokenizer = _tokenizer(files)
        self._device, self._dtype = device, dtype
        self._micro_batch = micro_batch
        self._mean, self._std = (
            torch.tensor(values, device=device).mul(255).view(3, 1, 1) for values in (self.spec.mean, self.spec.std)
        )

    def encode_frames(self, frames_F3HW: np.ndarray | torch.Tensor) -> np.ndarray:
        """Encode frames that already have the encoder's image size.

        Args:
            frames_F3HW: uint8 RGB, resized and cropped as `spec` says. May be empty.

        Returns:
            (F, D) float32, raw: not normalised to unit length.
        """
        frames_F3HW = torch.as_tensor(frames_F3HW)
        if frames_F3HW.dtype != torch.uint8 or frames_F3HW.shape[1:] != (3, *self.spec.image_size):
            raise ValueError(
                f"frames are {tuple(frames_F3HW.shape)} {frames_F3HW.dtype}; {self.spec.name} takes "
                f"(F, 3, {self.spec.image_size[0]}, {self.spec.image_size[1]}) torch.uint8"
            )
        vectors = self._in_micro_batches(self._frame_vectors, frames_F3HW)
        return torch.cat(vectors).numpy() if vectors else np.zeros((0, self.spec.embed_dim), np.float32)

    def encode_text(self, texts: Sequence[str]) -> tuple[np.ndarray, list[np.ndarray]]:
        """Encode texts into one pooled vector and the states of their tokens.

        Returns:
            (N, D) float32 pooled vectors, raw; and per text the (T, token_dim) float32 output of the text transformer
            after its final LayerNorm, for the tokens from the first to the end-of-text token.
        """
        if not texts:
            return np.zeros((0, self.spec.embed_dim), np.float32), []
        tokens_NT = self._tokenizer(list(texts))
        batches = self._in_micro_batches(self._text_vectors, tokens_NT)
        states_NTD = torch.cat([states for _, states in batches]).numpy()
        lengths = _num_tokens(self._tokenizer, tokens_NT).tolist()
        states = [states_TD[:length].copy() for states_TD, length in zip(states_NTD, lengths, strict=True)]
        return torch.cat([pooled for pooled, _ in batches]).numpy(), states

    def _frame_vectors(self, frames_F3HW: torch.Tensor) -> torch.Tensor:
        pixels = frames_F3HW.to(self._device, torch.float32).sub_(self._mean).div_(self._std)
        return self._model.encode_image(pixels.to(self._dtype), normalize=False).float().cpu()

    def _text_vectors(self, tokens_NT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Pooled vectors and token states of one forward pass: a hook reads the states on their way to the pooling."""
        text = text_tower(self._model)
        outputs: list[Any] = []
        hook = text.transformer.register_forward_hook(lambda module, args, output: outputs.append(output))
        try:
            pooled_ND = self._model.encode_text(tokens_NT.to(self._device), normalize=False)
        finally:
            hook.remove()
        states_NTD = getattr(outputs[0], "last_hidden_state", outputs[0])  # the former for towers of `transformers`
        if hasattr(text, "ln_final"):
            states_NTD = text.ln_final(states_NTD)
        return pooled_ND.float().cpu(), states_NTD.float().cpu()

    @torch.inference_mode()
    def _in_micro_batches(self, encode: Callable[[torch.Tensor], Out], items: torch.Tensor) -> list[Out]:
        """Encode slices of `micro_batch` items; when the GPU has no room for one, all later ones are half as large."""
        outputs: list[Out] = []
        start = 0
        while start < len(items):
            try:
                outputs.append(encode(items[start : start + self._micro_batch]))
                start += self._micro_batch
            except torch.cuda.OutOfMemoryError:
                if self._micro_batch == 1:
                    raise
                self._micro_batch //= 2
                torch.cuda.empty_cache()
        return outputs


def load_encoder(name: str, device: str | None = None, precision: str | None = None, micro_batch: int = 64) -> Encoder:
    """Load an encoder by name; see describe_encoder for the names and their errors.

    Args:
        name: MODEL:PRETRAINED.
        device: a torch device; default the GPU where there is one, else the CPU.
        precision: fp32, bf16 or fp16; default bf16 on a GPU, fp32 on a CPU.
        micro_batch: frames or texts of one forward pass.
    """
    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    precision = precision or ("bf16" if target.type == "cuda" else "fp32")
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r}; use one of {', '.join(PRECISIONS)}")
    return Encoder(resolve_encoder(name), target, PRECISIONS[precision], micro_batch)


def _tokenizer(files: EncoderFiles) -> SimpleTokenizer | HFTokenizer:
    if files.registry_name:
        return open_clip.get_tokenizer(files.registry_name)
    text_config = files.config["text_cfg"]
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


def _num_tokens(tokenizer: SimpleTokenizer | HFTokenizer, tokens_NT: torch.Tensor) -> torch.Tensor:
    """Tokens of each text up to and including its end-of-text token."""
    if isinstance(tokenizer, SimpleTokenizer):
        return tokens_NT.argmax(1) + 1  # the end-of-text token has the highest id; 0 is padding, but also "!"
    inner = tokenizer.tokenizer
    padded_with_end = inner.pad_token_id == inner.eos_token_id  # then the first padding token is the text's end
    return ((tokens_NT != inner.pad_token_id).sum(1) + int(padded_with_end)).clamp(max=tokens_NT.shape[1])
