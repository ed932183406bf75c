"""Synthetic images of any degree for :class:`spadnet.data.datasets.StepDataset`."""

from collections.abc import Sequence

import torch
from torch import Tensor

from spadnet.data.crop_plan import Size
from spadnet.synthesis.generate import Source, random_spacing, synthesize

_SPACING_STREAM = 0x5BAD  # keeps the draw of the spacing apart from that of the anatomy
_SOURCES: tuple[Source, ...] = ("fields", "shapes", "mixed")
ANATOMIES = (*_SOURCES, "any")


def synthetic_images(
    seeds: Sequence[int], size: Size, *, degree: int, source: str = "fields"
) -> tuple[Tensor, Tensor]:
    """Make one random image per seed, each with a random spacing of the wanted degree.

    Args:
        seeds: One per image; an image depends on its own seed only.
        size: Voxels (z, y, x).
        degree: Anisotropy.
        source: Where anatomy comes from, one of ``ANATOMIES``; ``any`` is each as often.

    Returns:
        Images in [0, 1], [B, 1, D, H, W], and their spacing in mm, [B, 3].
    """
    if source not in ANATOMIES:
        raise ValueError(f"source must be one of {', '.join(ANATOMIES)}, got {source!r}")
    images, spacings = [], []
    for seed in seeds:
        generator = torch.Generator().manual_seed((seed ^ _SPACING_STREAM) % (1 << 63))
        spacing = random_spacing(generator, degree=degree)
        number = seed % len(_SOURCES) if source == "any" else ANATOMIES.index(source)
        sample = synthesize([seed], size, spacing=spacing, source=_SOURCES[number])
        images.append(sample.image)
        spacings.append(sample.spacing)
    return torch.cat(images), torch.cat(spacings)
