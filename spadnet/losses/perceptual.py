"""Perceptual losses behind one small interface, chosen by name.

- ``multiscale`` (default): no network, no download; see :mod:`spadnet.losses.multiscale`.
- ``lpips-vgg16``: LPIPS on VGG16 from a local path; see :mod:`spadnet.losses.lpips`.
- ``monai``: MONAI's perceptual loss on the RadImageNet ResNet50, from a local torch hub folder.
- ``monai-resnet50``: the same on torchvision's ResNet50, from a local file.

Nothing is ever downloaded. The networks are 2D and see random slices of a volume.
"""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, Self, cast

import torch
from torch import Tensor, nn

from spadnet.losses.lpips import load_lpips_vgg16
from spadnet.losses.multiscale import MultiscalePerceptual

PERCEPTUAL_NAMES = ("multiscale", "lpips-vgg16", "monai", "monai-resnet50")
MAX_SLICES = 24

# What MONAI's "radimagenet_resnet50" reads from the torch hub folder before it tries the network.
_RADIMAGENET_FILES = (
    "Project-MONAI_perceptual-models_main/hubconf.py",
    "RadImageNet-ResNet50_notop.pth",
)


class Perceptual(Protocol):
    """How unlike two images look."""

    def __call__(
        self, x: Tensor, y: Tensor, *, degree: int, generator: torch.Generator | None = None
    ) -> Tensor:
        """Compare a reconstruction with its target.

        Args:
            x: Reconstruction, [B, C, D, H, W], intensities around [0, 1].
            y: Target, same shape.
            degree: Degree of anisotropy of both.
            generator: Source of whatever is drawn.

        Returns:
            Scalar; zero for identical images.
        """


class SlicePerceptual(nn.Module):
    """Mean distance of a 2D network over at most ``max_slices`` slices of a batch of volumes.

    The network is frozen, always in eval mode, and moves with this module, but it is not one of its
    submodules: checkpoints, optimisers and DDP's buffer broadcast see nothing of it.
    """

    def __init__(self, network: nn.Module, *, max_slices: int = MAX_SLICES) -> None:
        """Wrap a network.

        Args:
            network: Takes images and targets [N, 3, H, W] in [0, 1], gives distances of any shape.
            max_slices: Number of slices over the whole batch.
        """
        super().__init__()
        if max_slices < 1:
            raise ValueError(f"max_slices must be positive, got {max_slices}")
        self._unregistered = (network.requires_grad_(False).eval(),)  # a tuple is no submodule
        self.max_slices = max_slices

    @property
    def network(self) -> nn.Module:
        """The frozen network."""
        return self._unregistered[0]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Let ``to``, ``cuda`` and ``float`` reach the network too."""
        self.network._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def forward(
        self, x: Tensor, y: Tensor, *, degree: int, generator: torch.Generator | None = None
    ) -> Tensor:
        """Compare slices of [B, C, D, H, W]; channels other than RGB count as images of their own.

        Args:
            x: Reconstruction in [0, 1], [B, C, D, H, W].
            y: Target, same shape.
            degree: Unused: slices are seen one by one.
            generator: Chooses the slices; None takes them at even distances.

        Returns:
            Scalar in float32.
        """
        images, targets = _slices(x), _slices(y)
        index = choose_slices(images.shape[0], self.max_slices, generator=generator)
        index = index.to(x.device)
        repeats = (1, 3 // images.shape[1], 1, 1)
        # MONAI's networks normalise in place: index_select and repeat make copies of their own.
        images = images.index_select(0, index).repeat(repeats)
        targets = targets.index_select(0, index).repeat(repeats)
        return cast(Tensor, self.network(images, targets)).float().mean()


def _slices(x: Tensor) -> Tensor:
    """Turn [B, C, D, H, W] into [N, 3, H, W] for RGB, else [N, 1, H, W]."""
    slices = x.movedim(1, 2).flatten(0, 1)
    return slices if slices.shape[1] == 3 else slices.flatten(0, 1).unsqueeze(1)


def choose_slices(num_slices: int, max_slices: int, *, generator: torch.Generator | None) -> Tensor:
    """Choose at most ``max_slices`` of ``num_slices``.

    Args:
        num_slices: How many there are.
        max_slices: How many to choose at most.
        generator: Source of randomness; None takes them at even distances.

    Returns:
        Distinct indices, [min(num_slices, max_slices)].
    """
    if num_slices <= max_slices:
        return torch.arange(num_slices)
    if generator is None:
        return torch.arange(max_slices) * num_slices // max_slices
    order = torch.randperm(num_slices, generator=generator, device=generator.device)
    return order[:max_slices]


def build_perceptual(
    name: str = "multiscale",
    weights: str | Path | None = None,
    *,
    max_slices: int = MAX_SLICES,
) -> MultiscalePerceptual | SlicePerceptual:
    """Build the perceptual loss of the given name.

    Args:
        name: One of ``PERCEPTUAL_NAMES``.
        weights: Where the network's weights lie. ``lpips-vgg16``: file or folder, see
            :func:`spadnet.losses.lpips.load_lpips_vgg16`. ``monai``: torch hub folder, by default
            torch's own. ``monai-resnet50``: file in torchvision's layout.
        max_slices: Number of slices that a 2D network sees per batch.

    Raises:
        ValueError: If the name is unknown, or weights are missing: one line that names them.

    >>> loss = build_perceptual()
    >>> loss(torch.rand(1, 1, 1, 32, 32), torch.rand(1, 1, 1, 32, 32), degree=5) > 0
    tensor(True)
    """
    builders: dict[str, Callable[[Path | None], nn.Module]] = {
        "lpips-vgg16": _build_lpips,
        "monai": _build_radimagenet,
        "monai-resnet50": _build_resnet50,
    }
    if name == "multiscale":
        if weights is not None:
            raise ValueError(f"perceptual loss 'multiscale' takes no weights, got {weights}")
        return MultiscalePerceptual()
    if name not in builders:
        raise ValueError(f"perceptual loss must be one of {PERCEPTUAL_NAMES}, got {name!r}")
    network = builders[name](None if weights is None else Path(weights))
    return SlicePerceptual(network, max_slices=max_slices)


def _build_lpips(weights: Path | None) -> nn.Module:
    if weights is None:
        raise ValueError("perceptual loss 'lpips-vgg16' needs a path to its weights, got None")
    return load_lpips_vgg16(weights)


def _build_radimagenet(weights: Path | None) -> nn.Module:
    folder = Path(torch.hub.get_dir()) if weights is None else weights
    for file in _RADIMAGENET_FILES:
        if not (folder / file).is_file():
            raise ValueError(f"{folder / file}: missing; perceptual loss 'monai' needs this file")
    from monai.losses.perceptual import PerceptualLoss

    before = torch.hub.get_dir()
    torch.hub.set_dir(folder)
    try:
        return PerceptualLoss(spatial_dims=2, network_type="radimagenet_resnet50")
    finally:
        torch.hub.set_dir(before)


def _build_resnet50(weights: Path | None) -> nn.Module:
    if weights is None:
        raise ValueError("perceptual loss 'monai-resnet50' needs a weights file, got None")
    if not weights.is_file():
        raise ValueError(f"{weights}: missing; perceptual loss 'monai-resnet50' needs this file")
    from monai.losses.perceptual import PerceptualLoss

    try:
        return PerceptualLoss(spatial_dims=2, network_type="resnet50", pretrained_path=str(weights))
    except (RuntimeError, pickle.UnpicklingError, EOFError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{weights}: not the weights of a ResNet50 ({reason})") from error
