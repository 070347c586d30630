"""What workers exchange in a step: query vectors, score columns, gradients. A single process exchanges nothing.

Frame features never travel: a batch of the paper's shape has 128 x 128 frames of 384 features, 25 MB a branch, but only
500 query vectors (0.8 MB) and a (500, 128) matrix of scores (0.3 MB). Each worker scores all queries with its own
videos, so a step takes three messages: queries out, score columns back, gradients at the end.

Every worker knows which worker owns which row, so counts are not exchanged. `torch.distributed` must be initialised
before an `Exchange` of several workers is made.
"""

from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn


class Exchange:
    """The workers of one training run: those of torch.distributed if it is initialised, else this process alone."""

    def __init__(self) -> None:
        together = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if together else 0
        self.world_size = dist.get_world_size() if together else 1

    def gather(self, local: Tensor, owner_n: np.ndarray, same_loss: bool = False) -> Tensor:
        """Collect the rows of all workers, in batch order, with gradient.

        Args:
            local: this worker's rows, in batch order. It may have none.
            owner_n: the worker that owns each row of the result.
            same_loss: whether every worker computes the same loss from the result. If so, each worker's gradient is
                already that of the whole batch; summing them would count it once for each worker. If not (query
                vectors, which meet other videos on each worker), the workers' gradients are summed.
        """
        if self.world_size == 1:
            return local
        # all_gather takes equally shaped tensors, so each worker pads its rows to the largest count: worker w's rows
        # then lie in slots [w * largest, w * largest + counts[w]) of the result.
        counts = np.bincount(owner_n, minlength=self.world_size)
        # Stable, so that the rows of one worker keep their batch order: that is how `local` is sorted.
        order = np.argsort(owner_n, kind="stable")
        is_filled = np.arange(counts.max()) < counts[:, None]
        slot_n = np.empty_like(order)  # the slot of each row of the batch: indexing by it drops the padding
        slot_n[order] = np.flatnonzero(is_filled)
        padded = torch.cat([local, local.new_zeros(counts.max() - len(local), *local.shape[1:])])
        return _Gather.apply(padded, self.rank, self.world_size, same_loss)[torch.from_numpy(slot_n).to(local.device)]

    def gather_columns(self, local_Nv: list[Tensor], owner_V: np.ndarray) -> list[Tensor]:
        """Join the (N, v) matrices of all workers' videos to (N, V) ones; all workers compute one loss from them.

        The matrices travel in one message: at this size a message's latency costs more than its bytes.
        """
        if self.world_size == 1:
            return local_Nv
        # Videos first: `gather` joins rows.
        stacked_vMN = torch.stack(local_Nv).permute(2, 0, 1)
        return list(self.gather(stacked_vMN, owner_V, same_loss=True).permute(1, 2, 0).unbind())

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all workers, without gradient."""
        total = value.detach().clone()
        if self.world_size > 1:
            dist.all_reduce(total)
        return total

    def sum_gradients(self, model: nn.Module) -> None:
        """Sum the gradients of all workers in place, with one message.

        The model has 4 to 6 million parameters: one message of their size after the backward pass is simpler than
        DistributedDataParallel's buckets. It is also exact where a worker has no video: DistributedDataParallel would
        wait for gradients that never come, and divides by the number of workers, where ours are parts of a sum.
        """
        if self.world_size == 1:
            return
        params = [p for p in model.parameters() if p.requires_grad]
        for p in params:  # all_reduce needs the same length everywhere, so a worker without videos sends zeros
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        grads = [p.grad for p in params if p.grad is not None]
        flat = torch.cat([grad.flatten() for grad in grads])
        dist.all_reduce(flat)
        for grad, part in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
            grad.copy_(part.view_as(grad))


class _Gather(torch.autograd.Function):
    """all_gather of equally shaped tensors along dimension 0."""

    @staticmethod
    def forward(ctx: Any, local: Tensor, rank: int, world_size: int, same_loss: bool) -> Tensor:
        ctx.rank, ctx.count, ctx.same_loss = rank, len(local), same_loss
        parts = [torch.empty_like(local) for _ in range(world_size)]
        dist.all_gather(parts, local.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        grad = grads[0].contiguous()
        if not ctx.same_loss:  # every worker used these rows in a loss of its own
            dist.all_reduce(grad)
        return grad[ctx.rank * ctx.count : (ctx.rank + 1) * ctx.count], None, None, None
