"""A moving average of the weights, which scores better than those of any single step."""

import copy

import torch
from torch import nn


def start_average(model: nn.Module) -> nn.Module:
    """A copy of a model to be moved after it by :func:`update_average`."""
    return copy.deepcopy(model).requires_grad_(False)


@torch.no_grad()
def update_average(averaged: nn.Module, model: nn.Module, *, decay: float, step: int) -> None:
    """Move averaged weights towards the present ones.

    Statistics in buffers are averaged as well, as they belong to the weights of their time.

    Args:
        averaged: Changed in place.
        model: After the step.
        decay: Of the average, smaller in the first steps, where the weights are still far off.
        step: Finished steps before this one.
    """
    share = 1 - min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(averaged.parameters()), list(model.parameters()), share)
    for kept, new in zip(averaged.buffers(), model.buffers(), strict=True):
        if kept.is_floating_point():
            kept.lerp_(new, share)
        else:
            kept.copy_(new)


@torch.no_grad()
def restart_average(averaged: nn.Module, model: nn.Module) -> None:
    """Begin the average anew, where weights have changed in one leap."""
    pairs = zip(averaged.state_dict().values(), model.state_dict().values(), strict=True)
    for kept, new in pairs:
        kept.copy_(new)
