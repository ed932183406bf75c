"""Features by spadnet's own models, and by a control that cannot see what an image shows."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spadnet.data.image import Image
from spadnet.data.journal import hash_of
from spadnet.evaluate.features import PATCH, Extractor, Views
from spadnet.models.conv_net import SpadConvNet
from spadnet.models.vit import SpadViT
from spadnet.spacing import required_multiple

Encoder = SpadViT | SpadConvNet


def model_extractor(model: Encoder, digest: str) -> Extractor:
    """Features of a frozen network: its pooled feature, or those of its patches.

    Args:
        model: Put in evaluation mode.
        digest: Hash of its weights.
    """
    model.eval()

    def padded(views: Views) -> Tensor:
        stride = model.patch_embed.patch_size if isinstance(model, SpadViT) else model.stride
        steps = required_multiple(views.degree, stride=stride)
        ends = [-n % step for n, step in zip(views.image.shape[2:], steps, strict=True)]
        x = F.pad(views.image, (0, ends[2], 0, ends[1], 0, ends[0]), mode="replicate")
        weight = next(model.parameters())
        return x.expand(-1, model.in_chans, -1, -1, -1).to(weight)

    def pooled(views: Views) -> Tensor:
        features = model.forward_features(padded(views), views.degree)
        if isinstance(model, SpadViT) and model.global_pool == "":
            features = features[:, :1]
        return model.forward_head(features, pre_logits=True).flatten(1)

    def tokens(views: Views) -> Tensor:
        x = padded(views)
        features = model.forward_features(x, views.degree)
        if isinstance(model, SpadViT):
            steps = required_multiple(views.degree, stride=model.patch_embed.patch_size)
            own = [n // step for n, step in zip(x.shape[2:], steps, strict=True)]
            features = features[:, model.num_prefix_tokens :].transpose(1, 2).unflatten(2, own)
        return on_grid(features, views.grid)

    return Extractor(hash_of([digest, PATCH]), pooled, tokens)


def on_grid(maps: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """Bring maps [B, C, d, h, w] to the cells of a grid, [B, *grid, C]."""
    if tuple(maps.shape[2:]) != grid:
        maps = F.adaptive_avg_pool3d(maps.float(), grid)
    return maps.permute(0, 2, 3, 4, 1)


def control_extractor() -> Extractor:
    """What a shortcut would use: an image's shape, spacing and statistics of its intensities.

    Of label maps each cell also tells where in the image it lies.
    """

    def pooled(views: Views) -> Tensor:
        return torch.stack([torch.tensor(image_statistics(image)) for image in views.raw])

    def tokens(views: Views) -> Tensor:
        whole = pooled(views)[:, None, None, None].expand(-1, *views.grid, -1)
        axes = [torch.linspace(-1, 1, n) if n > 1 else torch.zeros(1) for n in views.grid]
        place = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)
        place = torch.cat([place, place**2, place**3, place.prod(-1, keepdim=True)], -1)
        return torch.cat([whole, place.expand(len(whole), -1, -1, -1, -1)], -1)

    return Extractor(hash_of(["control", 1]), pooled, tokens)


def image_statistics(image: Image) -> list[float]:
    """Shape, spacing and intensity statistics of an image as read; logarithms where they vary much.

    Args:
        image: As read.
    """
    array = image.array.astype(np.float32)
    spread = float(array.std())
    middle = float(array.mean())
    standard = (array - middle) / max(spread, 1e-12)
    levels = np.percentile(array, [1, 10, 25, 50, 75, 90, 99])
    spacing = [0.0 if mm == 0 or math.isinf(mm) else math.log(mm) for mm in image.spacing]
    return [
        *(math.log(n) for n in array.shape),
        *spacing,
        *(_log(float(value)) for value in (array.min(), array.max(), middle, spread, *levels)),
        float((standard**3).mean()),
        float(np.minimum((standard**4).mean(), 1e4)),
        float((array == array.min()).mean()),
        float((array == array.max()).mean()),
    ]


def _log(value: float) -> float:
    return math.copysign(math.log1p(abs(value)), value)


def num_parameters(model: nn.Module) -> int:
    """Number of weights."""
    return sum(parameter.numel() for parameter in model.parameters())
