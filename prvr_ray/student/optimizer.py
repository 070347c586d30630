"""BertAdam: Adam without bias correction, with its own schedule and clipping (METHOD: "Optimiser")."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-6


class BertAdam(torch.optim.Optimizer):
    """update = m / (sqrt(v) + eps) + weight_decay * p, with the gradient of each tensor clipped on its own.

    Args:
        params: tensors or groups; `group_by_decay` gives the paper's two.
        lr: peak learning rate.
        warmup: fraction of total_steps in linear warm-up; linear decay to 0 follows. Step 0 has lr 0.
        total_steps: later steps have lr 0.
        weight_decay: of groups that name none.
        max_grad_norm: L2 norm that the gradient of one tensor is clipped to.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        warmup: float,
        total_steps: int,
        weight_decay: float = 0.01,
        max_grad_norm: float = 1.0,
    ) -> None:
        self.warmup, self.total_steps, self.max_grad_norm = warmup, total_steps, max_grad_norm
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "step": 0})

    def rate(self, group: dict[str, Any]) -> float:
        """The learning rate of a group's next step."""
        progress = group["step"] / self.total_steps
        if progress < self.warmup:
            return group["lr"] * progress / self.warmup
        return group["lr"] * max((1.0 - progress) / (1.0 - self.warmup), 0.0) if self.warmup < 1 else 0.0

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient; the gradients are clipped in place."""
        assert closure is None, "BertAdam calls no closure"
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self._update(params, [p.grad for p in params], self.rate(group), group["weight_decay"])
            group["step"] += 1

    def _update(self, params: list[Tensor], grads: list[Tensor], rate: float, weight_decay: float) -> None:
        means, squares = self._moments(params)
        shrink = (self.max_grad_norm / (torch.stack(torch._foreach_norm(grads)) + EPSILON)).clamp(max=1.0)
        torch._foreach_mul_(grads, list(shrink))
        torch._foreach_lerp_(means, grads, 1 - BETA1)
        torch._foreach_mul_(squares, BETA2)
        torch._foreach_addcmul_(squares, grads, grads, 1 - BETA2)
        scale = torch._foreach_sqrt(squares)
        torch._foreach_add_(scale, EPSILON)
        torch._foreach_mul_(params, 1 - rate * weight_decay)
        torch._foreach_addcdiv_(params, means, scale, -rate)

    def _moments(self, params: Iterable[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        for p in params:
            if not self.state[p]:
                self.state[p] = {"mean": torch.zeros_like(p), "square": torch.zeros_like(p)}
        states = [self.state[p] for p in params]
        return [state["mean"] for state in states], [state["square"] for state in states]


def group_by_decay(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: weights that decay, and the biases and LayerNorm parameters that do not."""
    norms = {id(p) for module in model.modules() if isinstance(module, nn.LayerNorm) for p in module.parameters()}
    named = list(model.named_parameters())
    still = [p for name, p in named if name.endswith("bias") or id(p) in norms]
    moving = [p for name, p in named if not (name.endswith("bias") or id(p) in norms)]
    return [{"params": moving, "weight_decay": weight_decay}, {"params": still, "weight_decay": 0.0}]
