"""LPIPS on VGG16: distance of deep features of 2D images, weights from a local path.

Source: Zhang et al., arXiv 1801.03924 (version 0.1 heads); VGG16 of arXiv 1409.1556 in the
layout of torchvision.
"""

import logging
import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

logger = logging.getLogger(__name__)

# Input in [0, 1]. For input in [-1, 1] the mean m would become 2m - 1 and the deviation 2s.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # width, number of convolutions
MINIMUM_SIZE = 2 ** (len(_BLOCKS) - 1)
"""Smallest image side in pixels that reaches the last block."""


def vgg16_features() -> nn.Sequential:
    """Build VGG16's convolutions up to the last feature that LPIPS reads, weights on ``meta``.

    Layers have the indices that they have in torchvision's ``vgg16().features``.
    """
    layers: list[nn.Module] = []
    in_channels = 3
    for block, (width, num_convs) in enumerate(_BLOCKS):
        if block > 0:
            layers.append(nn.MaxPool2d(2))
        for _ in range(num_convs):
            layers.append(nn.Conv2d(in_channels, width, 3, padding=1, device="meta"))
            layers.append(nn.ReLU())
            in_channels = width
    return nn.Sequential(*layers)


class LpipsVgg16(nn.Module):
    """Learned perceptual image patch similarity of 2D images.

    At five depths of VGG16: unit-normalise the features over channels, square the difference, weigh
    the channels by a learned head, average over positions; sum over the depths.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        """Build the network.

        Args:
            weights: ``features.{i}.weight``, ``features.{i}.bias`` and ``lin{n}.model.1.weight``,
                as given by :func:`convert_lpips_weights`.
        """
        super().__init__()
        self.features = vgg16_features()
        self.heads = nn.ModuleList(
            nn.Conv2d(width, 1, 1, bias=False, device="meta") for width, _ in _BLOCKS
        )
        renamed = {
            re.sub(r"^lin(\d)\.model\.1\.", r"heads.\1.", name): value.float()
            for name, value in weights.items()
        }
        self.load_state_dict(renamed, assign=True)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))
        # The feature before each pooling, and the last one.
        pools = [i for i, layer in enumerate(self.features) if isinstance(layer, nn.MaxPool2d)]
        self.taps = [*(i - 1 for i in pools), len(self.features) - 1]

    def extract(self, x: Tensor) -> list[Tensor]:
        """Features of RGB images [N, 3, H, W] in [0, 1] at the five depths."""
        if min(x.shape[-2:]) < MINIMUM_SIZE:
            raise ValueError(
                f"LPIPS needs images of at least {MINIMUM_SIZE} pixels, got {tuple(x.shape[-2:])}"
            )
        x = (x - self.mean) / self.std
        taken = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.taps:
                taken.append(x)
        return taken

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Distance of images ``x`` to targets ``y``, the latter without gradient.

        Args:
            x: RGB images in [0, 1], [N, 3, H, W].
            y: Targets, same shape.

        Returns:
            Distances, [N].
        """
        with torch.no_grad():
            features_y = self.extract(y)
        total = x.new_zeros(x.shape[0], dtype=torch.float32)
        for head, a, b in zip(self.heads, self.extract(x), features_y, strict=True):
            squared = (_unit(a) - _unit(b)).square()
            total = total + head(squared).mean(dim=(1, 2, 3))
        return total


def _unit(features: Tensor) -> Tensor:
    """Scale [N, C, H, W] to unit length over C; finite gradient where all channels are zero."""
    features = features.float()
    return features * (features.square().sum(1, keepdim=True) + 1e-10).rsqrt()


def convert_lpips_weights(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bring VGG16 and LPIPS weights from any common layout into this module's.

    Understood are torchvision's VGG16 (``features.0.weight``, the classifier is left out), the
    published heads (``lin0.model.1.weight``), and a whole LPIPS module of the ``lpips`` package
    (``net.slice1.0.weight``, with copies of the heads under ``lins`` and a ``scaling_layer``).

    Args:
        state_dict: Tensors by name.

    Returns:
        ``features.{i}.weight``, ``features.{i}.bias``, ``lin{n}.model.1.weight``.

    Raises:
        ValueError: If a name is missing or unknown, or a shape is wrong.
    """
    found = {}
    unknown = []
    for name, value in state_dict.items():
        renamed = re.sub(r"^net\.slice\d\.(\d+)\.", r"features.\1.", name)
        if re.fullmatch(r"features\.\d+\.(weight|bias)|lin\d\.model\.1\.weight", renamed):
            found[renamed] = value
        elif not re.match(r"classifier\.|scaling_layer\.|lins\.", renamed):
            unknown.append(name)
    expected = _expected_shapes()
    missing = [name for name in expected if name not in found]
    unknown += [name for name in found if name not in expected]
    if missing or unknown:
        raise ValueError(
            f"not the weights of LPIPS on VGG16: missing {_shorten(missing)}, "
            f"unknown {_shorten(unknown)}"
        )
    for name, shape in expected.items():
        if found[name].shape != shape:
            raise ValueError(f"{name} has shape {tuple(found[name].shape)}, not {tuple(shape)}")
    return {name: found[name] for name in expected}


def _expected_shapes() -> dict[str, torch.Size]:
    shapes = {f"features.{k}": v.shape for k, v in vgg16_features().state_dict().items()}
    heads = {
        f"lin{n}.model.1.weight": torch.Size((1, width, 1, 1))
        for n, (width, _) in enumerate(_BLOCKS)
    }
    return shapes | heads


def _shorten(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return (", ".join(names[:3]) or "nothing") + more


def load_lpips_vgg16(weights: str | Path) -> LpipsVgg16:
    """Load the network from a file, or from a folder whose files together hold all weights.

    Args:
        weights: A ``.safetensors``, ``.pth`` or ``.pt`` file with VGG16's features and the five
            heads, or a folder with, say, ``vgg16-397923af.pth`` of torchvision and ``vgg.pth`` of
            the LPIPS release (also inside the torchmetrics package).

    Raises:
        ValueError: If something is not there or not readable; the message names it.
    """
    path = Path(weights)
    if path.is_dir():
        suffixes = (".pth", ".pt", ".safetensors")
        files = sorted(file for file in path.iterdir() if file.suffix in suffixes)
    else:
        files = [path]
    merged: dict[str, Tensor] = {}
    for file in files:
        merged |= _read_tensors(file)
    try:
        return LpipsVgg16(convert_lpips_weights(merged))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _read_tensors(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise ValueError(f"{file}: no such file")
    try:
        if file.suffix == ".safetensors":
            tensors = load_file(file)
        else:
            tensors = torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{file}: cannot be read as weights ({reason})") from error
    if not isinstance(tensors, dict) or not all(isinstance(v, Tensor) for v in tensors.values()):
        raise ValueError(f"{file}: does not hold tensors by name")
    logger.info("read %d tensors from %s", len(tensors), file)
    return tensors
