"""Synthetic images of any degree for the data sets of a training."""

from collections.abc import Sequence

import torch
from torch import Tensor

from spadnet.data.crop_plan import Size
from spadnet.data.labelled_steps import LabelledImages
from spadnet.spacing import MAX_DEGREE, Spacing
from spadnet.synthesis.appearance import Appearance
from spadnet.synthesis.dataset import NUM_LABELS
from spadnet.synthesis.generate import Source, random_spacing, synthesize, synthesize_views

_SPACING_STREAM = 0x5BAD  # keeps the draw of the spacing apart from that of the anatomy
_SEVERITY_STREAM = 0x5E7E
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
    images, spacings = [], []
    for seed in seeds:
        sample = synthesize(
            [seed], size, spacing=_spacing(seed, degree), source=_anatomy(seed, source)
        )
        images.append(sample.image)
        spacings.append(sample.spacing)
    return torch.cat(images), torch.cat(spacings)


def labelled_images(
    seeds: Sequence[int],
    size: Size,
    *,
    degree: int,
    source: str = "fields",
    severities: tuple[float, float] | None = (0.1, 0.9),
) -> LabelledImages:
    """Make one random image per seed with its anatomy and, if wanted, a second view of it.

    The second view has other contrasts and a scanner between mild and severe.

    Args:
        seeds: One per image; an image depends on its own seed only.
        size: Voxels (z, y, x).
        degree: Anisotropy.
        source: Where anatomy comes from, as in :func:`synthetic_images`.
        severities: Least and largest severity of the second view, from 0 to 1; None for one view.
    """
    made = []
    num_labels = NUM_LABELS[degree < MAX_DEGREE]
    for seed in seeds:
        spacing, anatomy = _spacing(seed, degree), _anatomy(seed, source)
        looks = {0: Appearance()}
        if severities is not None:
            severity = float(torch.rand((), generator=_generator(seed, _SEVERITY_STREAM)))
            severity = severities[0] + (severities[1] - severities[0]) * severity
            looks[1] = Appearance.at(severity)
        first, *others = synthesize_views(
            [seed], size, looks=looks, spacing=spacing, num_labels=num_labels, source=anatomy
        )
        second = others[0].image if others else None
        made.append(LabelledImages(first.image, first.labels, first.spacing, second))
    image, labels, spacings, views = zip(*made, strict=True)
    other_view = None if severities is None else torch.cat(views)
    return LabelledImages(torch.cat(image), torch.cat(labels), torch.cat(spacings), other_view)


def _generator(seed: int, stream: int) -> torch.Generator:
    return torch.Generator().manual_seed((seed ^ stream) % (1 << 63))


def _spacing(seed: int, degree: int) -> Spacing:
    return random_spacing(_generator(seed, _SPACING_STREAM), degree=degree)


def _anatomy(seed: int, source: str) -> Source:
    """Where the anatomy of one image comes from."""
    if source not in ANATOMIES:
        raise ValueError(f"source must be one of {', '.join(ANATOMIES)}, got {source!r}")
    return _SOURCES[seed % len(_SOURCES) if source == "any" else ANATOMIES.index(source)]
