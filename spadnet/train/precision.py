"""Choose the number format that a machine computes fastest in; scale losses where it is float16."""

from typing import Any, Literal, cast, get_args

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.plugins.precision import Precision as LightningPrecision

from spadnet.near_names import suggest

Precision = Literal["32-true", "bf16-mixed", "16-mixed", "bf16-true", "64-true"]


def choose_precision(precision: str = "auto", *, device: str | None = None) -> Precision:
    """Resolve ``"auto"``: bfloat16 where the hardware has it, float32 elsewhere.

    Args:
        precision: ``"auto"`` or one of Lightning's names, which is returned as it is.
        device: ``"cuda"`` or ``"cpu"``; by default what Lightning would choose.
    """
    if precision != "auto":
        known = get_args(Precision)
        if precision not in known:
            raise ValueError(f"unknown precision {precision!r}{suggest(precision, known)}")
        return cast(Precision, precision)
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return "bf16-mixed" if has_fast_bfloat16(kind) else "32-true"


def has_fast_bfloat16(device: str) -> bool:
    """Whether bfloat16 runs in hardware; elsewhere it is emulated and many times slower."""
    if device == "cuda":
        # Without emulation: Volta and Turing report support that is not there.
        return torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)
    if device != "cpu":
        return False
    checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, check, bool)() for check in checks)


class ScaledPrecision(MixedPrecision):
    """Lightning's float16 with a scaled loss, for steps that are judged before any optimiser moves.

    The task unscales the gradients itself, to clip and to judge them, and tells the scaler once per
    step what came of it; Lightning would do so after each optimiser.
    """

    def __init__(self, device: str) -> None:
        """Configure.

        Args:
            device: Kind of device, ``"cuda"`` or ``"cpu"``.
        """
        super().__init__("16-mixed", device, torch.amp.GradScaler(device))

    def optimizer_step(self, *args: Any, **kwargs: Any) -> Any:
        """Let the optimiser step: its gradients are unscaled and finite."""
        return LightningPrecision.optimizer_step(self, *args, **kwargs)


def loss_scaler(trainer: Trainer) -> torch.amp.GradScaler | None:
    """What scales the losses of a training; None where nothing does."""
    plugin = trainer.precision_plugin
    return plugin.scaler if isinstance(plugin, ScaledPrecision) else None
