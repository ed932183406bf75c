"""Specialise a spacing-aware network for one spacing."""

import torch
from torch import Tensor, nn

from spadnet.inference.freeze import freeze
from spadnet.models.plain import fold_network, sum_over_channels
from spadnet.spacing import MAX_DEGREE, Spacing


class Specialised(nn.Module):
    """An ordinary network for one spacing: ``network(x)`` is what the original gives.

    Attributes:
        model: The network with plain convolutions; its methods want :attr:`degree` as before.
        degree: The one degree of anisotropy that it fits.
    """

    def __init__(self, model: nn.Module, degree: int) -> None:
        """Hold a folded network, see :func:`specialise`."""
        super().__init__()
        self.model = model
        self.degree = degree

    def forward(self, x: Tensor) -> object:
        """Run the network on volumes [B, C_in, D, H, W] in [0, 1] of the one spacing."""
        dtype = next(self.model.parameters()).dtype
        return self.model(x.to(dtype), self.degree)


def specialise(
    model: nn.Module,
    spacing: Spacing | int,
    *,
    grey: bool = False,
    dtype: torch.dtype | None = None,
    channels_last: bool = True,
    frozen: bool = False,
) -> Specialised:
    """Fold a network's kernels once for one spacing; the output stays the same.

    >>> vit = spadnet.create_model("spad_vit_tiny", in_chans=1, num_classes=3)
    >>> net = spadnet.specialise(vit, spadnet.Spacing(5.0, 0.8, 0.8))
    >>> net(torch.rand(1, 1, 8, 32, 32)).shape
    torch.Size([1, 3])

    Args:
        model: A network that is called as ``model(x, degree)``: tokenizer, ViT, pyramid.
        spacing: Spacing in mm, or the degree of anisotropy itself.
        grey: Whether a network of several input channels shall take one that stands for all.
        dtype: Precision of the copy, that of the model by default.
        channels_last: Whether kernels are stored channels last, which is faster on CPU.
        frozen: Whether matrices are packed too, see :func:`spadnet.inference.freeze.freeze`: much
            faster for a transformer on CPU, which is nearly all matrices, but what comes out can
            neither learn nor be saved or exported.

    Returns:
        A copy; the model is left as it is.

    Raises:
        ValueError: If there is nothing to fold, no such degree, or nothing that can be frozen here.
    """
    degree = spacing.degree() if isinstance(spacing, Spacing) else spacing
    if not 0 <= degree <= MAX_DEGREE:
        raise ValueError(f"degree must be 0 to {MAX_DEGREE}, got {degree}")
    plain = fold_network(model, degree)
    if grey:
        sum_over_channels(plain)
    if dtype is not None:
        plain = plain.to(dtype)
    if channels_last:
        plain = plain.to(memory_format=torch.channels_last_3d)
    return Specialised(freeze(plain) if frozen else plain, degree)
