"""Optimiser, parameter groups and the learning-rate schedule of both stages."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

_NEVER_DECAYED = ("codebook", "pos_embed", "cls_token", "mask_token")


class OptimSettings(NamedTuple):
    """Settings of AdamW and its schedule.

    Attributes:
        lr: Highest learning rate, reached after the warm-up.
        final_lr: Learning rate at the end of the cosine.
        warmup_steps: Steps of linear warm-up.
        weight_decay: Decay of weight matrices and kernels.
        betas: Decay of the moving averages.
        clip: Largest norm of the gradient, None for no clipping.
    """

    lr: float = 1e-4
    final_lr: float = 1e-6
    warmup_steps: int = 0
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float | None = None


def cosine_lr(step: int, *, max_steps: int, settings: OptimSettings) -> float:
    """Learning rate of a step: linear warm-up, then a cosine down to the final rate.

    Args:
        step: Number of finished optimiser steps.
        max_steps: Length of the training.
        settings: Rates and length of the warm-up.
    """
    if step < settings.warmup_steps:
        return settings.lr * (step + 1) / settings.warmup_steps
    share = (step - settings.warmup_steps) / max(max_steps - settings.warmup_steps, 1)
    fall = 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))
    return settings.final_lr + (settings.lr - settings.final_lr) * fall


def parameter_groups(modules: Iterable[nn.Module], weight_decay: float) -> list[dict[str, object]]:
    """Split parameters: matrices and kernels decay.

    Norms, biases, embeddings, codebooks, tokens, and what a model names in its ``no_weight_decay``
    do not.

    Args:
        modules: Where the parameters are; frozen ones are left out.
        weight_decay: Decay of those that decay.
    """
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for module in modules:
        never = _never_decayed(module)
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                (kept if parameter.ndim < 2 or name in never else decayed).append(parameter)
    groups: list[dict[str, object]] = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _never_decayed(root: nn.Module) -> set[str]:
    """Full names of parameters that weight decay must leave alone whatever their shape."""
    names = set()
    for prefix, module in root.named_modules():
        own = {name for name, _ in module.named_parameters(recurse=False)}
        chosen = own if isinstance(module, nn.Embedding) else own.intersection(_NEVER_DECAYED)
        if callable(listed := getattr(module, "no_weight_decay", None)):
            chosen = chosen | set(listed())
        names |= {f"{prefix}.{name}" if prefix else name for name in chosen}
    return names


class DenseAdamW(torch.optim.AdamW):
    """AdamW that takes kernels stored channels last as the dense arrays that they are.

    On CPU torch's fused AdamW copies every tensor whose axes are not in order, back and forth,
    which costs four times the step itself. The update acts on each element alone, so it may look
    at the axes in the order of memory.
    """

    def step(self, closure: Any = None) -> Any:
        """Do one step, see :class:`torch.optim.AdamW`."""
        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        kernels = [
            parameter
            for group in self.param_groups
            for parameter in group["params"]
            if _is_channels_last(parameter)
        ]
        for kernel in kernels:
            self._reorder(kernel, (0, 2, 3, 4, 1))
        try:
            super().step()
        finally:
            for kernel in kernels:
                self._reorder(kernel, (0, 4, 1, 2, 3))
        return result

    def _reorder(self, kernel: nn.Parameter, axes: Sequence[int]) -> None:
        """Permute the axes of a kernel, its gradient and its averages; memory stays as it is."""
        gradient, kernel.grad = kernel.grad, None
        kernel.data = kernel.data.permute(*axes)
        kernel.grad = None if gradient is None else gradient.permute(*axes)
        state = self.state.get(kernel, {})
        for name, value in state.items():
            if isinstance(value, Tensor) and value.ndim == kernel.ndim:
                state[name] = value.permute(*axes)


def _is_channels_last(parameter: Tensor) -> bool:
    return (
        parameter.ndim == 5
        and parameter.device.type == "cpu"
        and not parameter.is_contiguous()
        and parameter.is_contiguous(memory_format=torch.channels_last_3d)
    )


def build_adamw(*modules: nn.Module, settings: OptimSettings) -> torch.optim.AdamW:
    """Build AdamW over the parameters of ``modules``."""
    groups = parameter_groups(modules, settings.weight_decay)
    return DenseAdamW(groups, lr=settings.lr, betas=settings.betas, fused=True)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of all groups."""
    for group in optimizer.param_groups:
        group["lr"] = lr
