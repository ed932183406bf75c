"""Choose the number format that a machine computes fastest in."""

from typing import Literal, cast, get_args

import torch

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
