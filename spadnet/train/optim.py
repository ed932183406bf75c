"""Optimiser, parameter groups and the learning-rate schedules of every stage."""

import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple, cast, get_args

import torch
from torch import Tensor, nn

from spadnet.near_names import suggest

Schedule = Literal["cosine", "steps", "tanh", "poly"]

_NEVER_DECAYED = ("codebook", "pos_embed", "cls_token", "mask_token")


class OptimSettings(NamedTuple):
    """Settings of AdamW, its schedule and the average of what it trains.

    Attributes:
        lr: Highest learning rate, reached after the warm-up.
        final_lr: Learning rate at the end.
        warmup_steps: Steps of linear warm-up.
        weight_decay: Decay of weight matrices and kernels.
        betas: Decay of the moving averages.
        clip: Largest norm of the gradient, None for no clipping.
        schedule: Way from the highest rate to the last: ``"cosine"``, timm's ``"tanh"`` and
            ``"poly"``, or ``"steps"``: a tenth after half and after three quarters.
        layer_decay: Factor on the learning rate from each layer to the one below; 1 for none.
        ema: Decay of the average of the weights that is scored and saved; 0 for none.
    """

    lr: float = 1e-4
    final_lr: float = 1e-6
    warmup_steps: int = 0
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float | None = None
    schedule: Schedule = "cosine"
    layer_decay: float = 1.0
    ema: float = 0.0


def check_settings(settings: OptimSettings) -> None:
    """Raise ValueError where a setting is out of range."""
    known = get_args(Schedule)
    if settings.schedule not in known:
        raise ValueError(
            f"unknown schedule {settings.schedule!r}{suggest(str(settings.schedule), known)}"
        )
    if not 0 < settings.layer_decay <= 1 or not 0 <= settings.ema < 1:
        raise ValueError(
            f"layer_decay must lie in (0, 1] and ema in [0, 1), got {settings.layer_decay} "
            f"and {settings.ema}"
        )


def learning_rate(step: int, *, max_steps: int, settings: OptimSettings) -> float:
    """Learning rate of a step, by the schedule that is set.

    Args:
        step: Number of finished optimiser steps.
        max_steps: Length of the training.
        settings: Schedule, rates and length of the warm-up.
    """
    if settings.schedule == "cosine" or step < settings.warmup_steps:
        return cosine_lr(step, max_steps=max_steps, settings=settings)
    if settings.schedule == "steps":
        return settings.lr * 0.1 ** sum(step >= share * max_steps for share in (0.5, 0.75))
    rates: Any = _timm_schedule(settings, max(max_steps - settings.warmup_steps, 1))
    rates.step_update(step - settings.warmup_steps)
    return float(rates.optimizer.param_groups[0]["lr"])


@functools.lru_cache(maxsize=8)
def _timm_schedule(settings: OptimSettings, max_steps: int) -> Any:
    """timm's schedule after the warm-up, over an optimiser of its own: it has no other state."""
    from timm.scheduler import create_scheduler_v2

    dummy = torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=settings.lr)
    scheduler, _ = create_scheduler_v2(
        dummy,
        sched=settings.schedule,
        num_epochs=max_steps,
        min_lr=settings.final_lr,
        warmup_epochs=0,
        cooldown_epochs=0,
        step_on_epochs=False,
        updates_per_epoch=1,
    )
    return scheduler


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


def scaled_groups(
    model: nn.Module, *, weight_decay: float, layer_decay: float
) -> list[dict[str, Any]]:
    """Parameter groups with ``lr_scale``: ``layer_decay`` to the number of layers above.

    Args:
        model: With timm's ``group_matcher`` and ``no_weight_decay`` where ``layer_decay`` is not 1.
        weight_decay: Decay of matrices and kernels.
        layer_decay: Factor from each layer to the one below.
    """
    if layer_decay == 1:
        return cast(list[dict[str, Any]], parameter_groups([model], weight_decay))
    if not callable(getattr(model, "group_matcher", None)):
        raise ValueError(f"a {type(model).__name__} has no layers to decay over; layer_decay=1")
    from timm.optim import param_groups_layer_decay  # torchvision comes along: seconds

    never = cast(Any, model).no_weight_decay()
    groups = param_groups_layer_decay(
        model, weight_decay=weight_decay, no_weight_decay_list=never, layer_decay=layer_decay
    )
    return [
        {key: value for key, value in group.items() if key != "param_names"} for group in groups
    ]


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


def build_adamw(module: nn.Module, *, settings: OptimSettings) -> torch.optim.AdamW:
    """Build AdamW over the parameters of ``module``, slower in lower layers where it is set."""
    groups = scaled_groups(
        module, weight_decay=settings.weight_decay, layer_decay=settings.layer_decay
    )
    return DenseAdamW(groups, lr=settings.lr, betas=settings.betas, fused=True)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of all groups, each by its share of it."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
