"""The processes that share each training step: which one this is, and what they say together.

Ranks hold consecutive rows of the batch that a single process would have, equally many each, so
whatever is drawn per sample can be drawn for the whole batch by everyone and cut.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def num_ranks() -> int:
    """Number of processes of this training, 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def own_rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if num_ranks() > 1 else 0


def own_rows(x: Tensor) -> Tensor:
    """Part of a whole batch [B, ...] that belongs to this rank, [B / ranks, ...]."""
    share = x.shape[0] // num_ranks()
    return x[own_rank() * share : (own_rank() + 1) * share]


@torch.no_grad()
def all_rows(x: Tensor) -> Tensor:
    """Rows [B, ...] of every rank as one batch [B * ranks, ...], in the order of the ranks."""
    if num_ranks() == 1:
        return x
    parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(num_ranks())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)


def sum_over_ranks(x: Tensor) -> Tensor:
    """Sum of a tensor over ranks; its gradient is the sum of all ranks' gradients.

    Where gradients are averaged over ranks afterwards, a function of the sum has the gradient that
    one process with the whole batch would see.
    """
    if num_ranks() == 1:
        return x
    total: Tensor = _Sum.apply(x)
    return total


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


def from_first_rank(x: Tensor) -> Tensor:
    """Tensor of the first rank, on every rank."""
    if num_ranks() > 1:
        dist.broadcast(x, 0)
    return x
