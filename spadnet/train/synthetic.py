"""Synthetic images of any degree for the data sets of a training."""

from collections.abc import Sequence

import torch
from torch import Tensor

from spadnet.data.crop_plan import Size
from spadnet.data.labelled_steps import LabelledImages
from spadnet.spacing import MAX_DEGREE, Spacing
from spadnet.synthesis.appearance import Appearance
from spadnet.synthesis.dataset import (
    AFFINE,
    DRAWN_DISPLACEMENT,
    GIVEN_DISPLACEMENT,
    NUM_LABELS,
)
from spadnet.synthesis.generate import Source, random_spacing, synthesize, synthesize_views
from spadnet.synthesis.geometry import plan_geometry
from spadnet.synthesis.label_maps import LabelMap, place_sample

_SPACING_STREAM = 0x5BAD  # keeps the draw of the spacing apart from that of the anatomy
_SEVERITY_STREAM = 0x5E7E
_MAP_STREAM = 0x3A95
_SOURCES: tuple[Source, ...] = ("fields", "shapes", "mixed")
ANATOMIES = (*_SOURCES, "any")
MAP_LABELS = 32
"""Labels of an image of a label map: the background and its largest structures."""
_SCALES = (0.5, 0.75, 2.0)  # least, wanted and largest voxel as part of a label map's own


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
    label_maps: Sequence[LabelMap] = (),
    label_map_share: float = 0.5,
) -> LabelledImages:
    """Make one random image per seed with its anatomy and, if wanted, a second view of it.

    The second view has other contrasts and a scanner between mild and severe. Images of label maps
    have labels of their own, below ``MAP_LABELS``: 0 is the background, 1 the largest structure.

    Args:
        seeds: One per image; an image depends on its own seed only.
        size: Voxels (z, y, x).
        degree: Anisotropy.
        source: Where anatomy comes from, as in :func:`synthetic_images`.
        severities: Least and largest severity of the second view, from 0 to 1; None for one view.
        label_maps: Of the user; those that are single slices serve degree 5 only.
        label_map_share: Chance that anatomy comes from one of them, where there are any.

    Raises:
        ValueError: If no label map can give the degree.
    """
    made = []
    for seed in seeds:
        looks = {0: Appearance()}
        if severities is not None:
            severity = float(torch.rand((), generator=_generator(seed, _SEVERITY_STREAM)))
            severity = severities[0] + (severities[1] - severities[0]) * severity
            looks[1] = Appearance.at(severity)
        generator = _generator(seed, _MAP_STREAM)
        if label_maps and float(torch.rand((), generator=generator)) < label_map_share:
            label_map = _choose(label_maps, degree=degree, generator=generator)
            spacing = spacing_within(label_map, size, degree=degree, generator=generator)
            geometry = plan_geometry(size, spacing=spacing, field_of_view=None)
            views = synthesize_views(
                [seed],
                size,
                looks=looks,
                spacing=spacing,
                num_labels=MAP_LABELS,
                source=place_sample(
                    label_map, geometry=geometry, affine=AFFINE, generator=generator
                ),
                max_displacement=GIVEN_DISPLACEMENT,
                only_largest=True,
            )
        else:
            views = synthesize_views(
                [seed],
                size,
                looks=looks,
                spacing=_spacing(seed, degree),
                num_labels=NUM_LABELS[degree < MAX_DEGREE],
                source=_anatomy(seed, source),
                max_displacement=DRAWN_DISPLACEMENT,
            )
        second = views[1].image if len(views) > 1 else None
        made.append(LabelledImages(views[0].image, views[0].labels, views[0].spacing, second))
    image, labels, spacings, others = zip(*made, strict=True)
    other_view = None if severities is None else torch.cat(others)
    return LabelledImages(torch.cat(image), torch.cat(labels), torch.cat(spacings), other_view)


def spacing_within(
    label_map: LabelMap, size: Size, *, degree: int, generator: torch.Generator
) -> Spacing:
    """Draw a spacing of a degree whose voxels are hardly finer than those of a label map.

    Finer voxels would show the map's own as bricks, and a box larger than the map would be filled
    with background. Of thick slices and of few slices, bricks are the lesser evil.

    Args:
        label_map: Of the user.
        size: Voxels of the image (z, y, x).
        degree: Anisotropy.
        generator: Source of randomness, on the CPU.
    """
    drawn = random_spacing(generator, degree=degree)
    ratios = (drawn.z / drawn.y, 1.0, 1.0)  # of the voxel's sides to the pixel
    axes = range(1 if drawn.is_planar else 0, 3)
    extents = [num * mm for num, mm in zip(label_map.size, label_map.spacing, strict=True)]
    fits = min(extents[axis] / (size[axis] * ratios[axis]) for axis in axes)
    in_plane = max(label_map.spacing[1:])
    own = max(in_plane, min(fits, max(label_map.spacing[axis] / ratios[axis] for axis in axes)))
    least, wanted, largest = (scale * own for scale in _SCALES)
    low = max(least, min(wanted, fits))
    high = max(low, min(largest, fits))
    place = float(torch.rand((), generator=generator, dtype=torch.float64))
    pixel = low * (high / low) ** place
    if drawn.is_planar:
        return Spacing.planar(pixel, pixel)
    return Spacing(pixel * ratios[0], pixel, pixel)


def _choose(label_maps: Sequence[LabelMap], *, degree: int, generator: torch.Generator) -> LabelMap:
    """One of the label maps that can give a degree."""
    able = [one for one in label_maps if degree == MAX_DEGREE or not one.is_planar]
    if not able:
        raise ValueError(f"label maps that are single slices cannot give degree {degree}")
    return able[int(torch.randint(len(able), (), generator=generator))]


def _generator(seed: int, stream: int) -> torch.Generator:
    return torch.Generator().manual_seed((seed ^ stream) % (1 << 63))


def _spacing(seed: int, degree: int) -> Spacing:
    return random_spacing(_generator(seed, _SPACING_STREAM), degree=degree)


def _anatomy(seed: int, source: str) -> Source:
    """Where the anatomy of one image comes from."""
    if source not in ANATOMIES:
        raise ValueError(f"source must be one of {', '.join(ANATOMIES)}, got {source!r}")
    return _SOURCES[seed % len(_SOURCES) if source == "any" else ANATOMIES.index(source)]
