"""Where a worker computes. No Ray."""

import torch


def device_of(num_gpus: float) -> str:
    """The device of a worker that was given so many GPUs: none is for the CPU, though torch may see the node's.

    Ray does not hide a node's GPUs from workers that asked for none (`RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO`), and such
    a worker would take memory from those that did.
    """
    return "cuda" if num_gpus > 0 and torch.cuda.is_available() else "cpu"
