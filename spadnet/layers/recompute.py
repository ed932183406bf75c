"""Gradient checkpointing: a layer computed twice instead of its activations kept."""

from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint


def run_layer(layer: nn.Module, x: Tensor, degree: int, *, again: bool) -> Tensor:
    """Run a layer, or compute it ``again`` in the backward pass instead of keeping its maps.

    Args:
        layer: Takes a volume and its degree.
        x: [B, C, D, H, W].
        degree: Degree of anisotropy.
        again: Whether to save memory for a third more time.
    """
    if not again:
        return layer(x, degree)
    weights = dict(layer.named_parameters())
    if all(isinstance(weight, nn.Parameter) for weight in weights.values()):
        return checkpoint(layer, x, degree, use_reentrant=False)
    # ``functional_call`` lends the model other weights, and has taken them back in the backward.
    return checkpoint(functional_call, layer, weights, (x, degree), use_reentrant=False)
