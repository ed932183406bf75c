"""Gradient checkpointing: a layer computed twice instead of its activations kept."""

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def run_layer(layer: nn.Module, x: Tensor, degree: int, *, again: bool) -> Tensor:
    """Run a layer, or compute it ``again`` in the backward pass instead of keeping its maps.

    Args:
        layer: Takes a volume and its degree.
        x: [B, C, D, H, W].
        degree: Degree of anisotropy.
        again: Whether to save memory for a third more time.
    """
    if again:
        return checkpoint(layer, x, degree, use_reentrant=False)
    return layer(x, degree)
