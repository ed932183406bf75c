"""2D convolutions become 3D ones that are the same at degree 5."""

from collections.abc import Collection, Mapping
from typing import Literal

from torch import Tensor

from spadnet.layers.spad_conv import Reduction, inflate
from spadnet.weights.convert.rename import StateDict


def inflate_convolutions(
    state: Mapping[str, Tensor],
    *,
    mode: Literal["average", "center"] = "average",
    transposed: Collection[str] = (),
    reduction: Reduction = "mean",
) -> StateDict:
    """Inflate every 2D kernel of a state dict along depth; all else stays as it is.

    Args:
        state: State dict of a 2D network; kernels are the tensors of four axes [.., .., k, k].
        mode: How a kernel is spread over its depth taps, see
            :func:`spadnet.layers.spad_conv.inflate`.
        transposed: Keys of the kernels of transposed convolutions.
        reduction: How the target's transposed convolutions fold their depth taps; the mean of k
            taps asks for taps k times as large.

    Returns:
        State dict of the network with SPAD convolutions in their place.

    Raises:
        ValueError: If a kernel is not square, or a transposed one is missing.
    """
    if unknown := [key for key in transposed if key not in state or state[key].ndim != 4]:
        raise ValueError(f"no kernels of transposed convolutions: {', '.join(unknown)}")
    inflated = dict(state)
    for key, weight in state.items():
        if weight.ndim != 4:
            continue
        height, width = weight.shape[-2:]
        if height != width:
            raise ValueError(f"{key}: a kernel of {height} x {width} has no isotropic form")
        scale = width if key in transposed and reduction == "mean" else 1
        inflated[key] = inflate(weight, width, mode=mode) * scale
    return inflated
