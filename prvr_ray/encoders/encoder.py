"""Encodes frames and texts as vectors.

Shapes: F frames, N texts, T tokens, D vector dimensions, H and W pixels.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch

from .spec import EncoderFiles, EncoderSpec, build_model, describe_model, get_text_tower, resolve_encoder
from .tokenizer import count_tokens, make_tokenizer

Out = TypeVar("Out")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Encoder:
    """One open_clip model on one device. `spec` describes its vectors, `logit_scale` multiplies its cosines."""

    def __init__(self, files: EncoderFiles, device: torch.device, dtype: torch.dtype, micro_batch: int):
        model = build_model(files)
        self.spec: EncoderSpec = describe_model(files, model)
        self.logit_scale = float(model.logit_scale.detach().exp())
        self._model = model.to(device, dtype)
        self._tokenizer = make_tokenizer(files.name, files.registry_name, files.config)
        self._device, self._dtype = device, dtype
        self._micro_batch = micro_batch
        self._mean, self._std = (
            torch.tensor(values, device=device).mul(255).view(3, 1, 1) for values in (self.spec.mean, self.spec.std)
        )

    def encode_frames(self, frames_F3HW: np.ndarray | torch.Tensor) -> np.ndarray:
        """Encode frames that have been resized to the encoder's image size.

        Args:
            frames_F3HW: uint8 RGB, resized and cropped according to `spec`. May be empty.

        Returns:
            (F, D) float32, not normalised.
        """
        frames_F3HW = torch.as_tensor(frames_F3HW)
        if frames_F3HW.dtype != torch.uint8 or frames_F3HW.shape[1:] != (3, *self.spec.image_size):
            raise ValueError(
                f"frames are {tuple(frames_F3HW.shape)} {frames_F3HW.dtype}; {self.spec.name} takes "
                f"(F, 3, {self.spec.image_size[0]}, {self.spec.image_size[1]}) torch.uint8"
            )
        vectors = self._in_micro_batches(self._frame_vectors, frames_F3HW)
        # Taken back once: a copy after every micro-batch would wait for the device each time.
        return torch.cat(vectors).cpu().numpy() if vectors else np.zeros((0, self.spec.embed_dim), np.float32)

    def encode_text(self, texts: Sequence[str]) -> tuple[np.ndarray, list[np.ndarray]]:
        """Encode each text as one pooled vector and the states of its tokens.

        Returns:
            (N, D) float32 pooled vectors, not normalised; and per text (T, token_dim) float32 token states: the output
            of the text transformer after its final LayerNorm, up to and including the end-of-text token.
        """
        if not texts:
            return np.zeros((0, self.spec.embed_dim), np.float32), []
        tokens_NT = self._tokenizer(list(texts))
        batches = self._in_micro_batches(self._text_vectors, tokens_NT)
        states_NTD = torch.cat([states for _, states in batches]).numpy()
        lengths = count_tokens(self._tokenizer, tokens_NT).tolist()
        states = [states_TD[:length].copy() for states_TD, length in zip(states_NTD, lengths, strict=True)]
        return torch.cat([pooled for pooled, _ in batches]).numpy(), states

    def _frame_vectors(self, frames_F3HW: torch.Tensor) -> torch.Tensor:
        pixels = send_frames(frames_F3HW, self._device).to(torch.float32).sub_(self._mean).div_(self._std)
        return self._model.encode_image(pixels.to(self._dtype), normalize=False).float()

    def _text_vectors(self, tokens_NT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Run one forward pass; a hook records the token states before they are pooled."""
        text = get_text_tower(self._model)
        outputs: list[Any] = []
        hook = text.transformer.register_forward_hook(lambda module, args, output: outputs.append(output))
        try:
            pooled_ND = self._model.encode_text(tokens_NT.to(self._device), normalize=False)
        finally:
            hook.remove()
        states_NTD = getattr(outputs[0], "last_hidden_state", outputs[0])  # towers from `transformers` return an object
        if hasattr(text, "ln_final"):
            states_NTD = text.ln_final(states_NTD)
        return pooled_ND.float().cpu(), states_NTD.float().cpu()

    @torch.inference_mode()
    def _in_micro_batches(self, encode: Callable[[torch.Tensor], Out], items: torch.Tensor) -> list[Out]:
        """Encode slices of `micro_batch` items; halve `micro_batch` whenever the GPU runs out of memory."""
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


def send_frames(frames_F3HW: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy uint8 frames to a device as they are: 150 KB for a frame of 224 x 224 pixels.

    A `to` that changes device and type converts on the CPU first, which sends four times as much. A copy from pinned
    memory does not make the CPU wait.
    """
    if device.type != "cuda":
        return frames_F3HW.to(device)
    return frames_F3HW.pin_memory().to(device, non_blocking=True)


def load_encoder(name: str, device: str | None = None, precision: str | None = None, micro_batch: int = 64) -> Encoder:
    """Load an encoder by name; see `describe_encoder` for names and errors.

    Args:
        name: MODEL:PRETRAINED.
        device: a torch device; default: the GPU if there is one, else the CPU.
        precision: fp32, bf16 or fp16; default: bf16 on a GPU, fp32 on a CPU.
        micro_batch: frames or texts per forward pass.
    """
    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    precision = precision or ("bf16" if target.type == "cuda" else "fp32")
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r}; use one of {', '.join(PRECISIONS)}")
    return Encoder(resolve_encoder(name), target, PRECISIONS[precision], micro_batch)
