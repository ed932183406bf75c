"""From seeds to images in one call: random anatomy, random appearance, any spacing."""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from spadnet.spacing import MAX_DEGREE, Spacing
from spadnet.synthesis.anatomy import field_labels
from spadnet.synthesis.appearance import Appearance, draw_clean, render
from spadnet.synthesis.degradation import thick_labels
from spadnet.synthesis.fields import sample_generators, uniform
from spadnet.synthesis.geometry import Geometry, plan_geometry
from spadnet.synthesis.label_maps import (
    MAX_LABELS,
    PlacedMaps,
    fill_box,
    given_labels,
    keep_largest,
)
from spadnet.synthesis.shapes import paint_shapes, shape_labels

DEVICE_CHUNK = 1 << 24
"""Voxels made at once on an accelerator."""

Source = Literal["fields", "shapes", "mixed"]
"""Random fields, shapes in a body, or shapes painted over random fields."""


class SyntheticSample(NamedTuple):
    """A batch of synthetic images and what they were made of.

    Attributes:
        image: Intensities in [0, 1], [B, 1, D, H, W].
        labels: Anatomy, uint8, [B, D, H, W].
        spacing: Millimetres along z, y and x, [B, 3].
        bias: Bias field, a factor around 1, [B, 1, D, H, W].
        clean: The image before bias field, noise, blur and gamma, [B, 1, D, H, W].
    """

    image: Tensor
    labels: Tensor
    spacing: Tensor
    bias: Tensor
    clean: Tensor


class Recipe(NamedTuple):
    """What the samples of one call have in common."""

    geometry: Geometry
    num_labels: int
    source: Source | None
    looks: Mapping[int, Appearance]
    background: float
    max_displacement: float
    only_largest: bool


def synthesize(
    seeds: Sequence[int],
    size: tuple[int, int, int],
    *,
    spacing: Spacing = Spacing(1.0, 1.0, 1.0),
    num_labels: int = 8,
    source: Source | Tensor | PlacedMaps = "fields",
    appearance: Appearance | None = None,
    field_of_view: float | None = None,
    background: float = 0.5,
    max_displacement: float = 1 / 16,
    view: int = 0,
    device: torch.device | str = "cpu",
) -> SyntheticSample:
    """Make random images; each depends on its own seed only, not on the batch or the device.

    Args:
        seeds: One per sample; ``range(8)`` gives a batch of eight.
        size: Voxels, (D, H, W); D is 1 for a 2D image.
        spacing: Voxel spacing in mm. Thick slices are averages of thin ones.
        num_labels: Labels of the anatomy, 2 to 256.
        source: Where anatomy comes from, or label maps with integers below ``num_labels``,
            [B, d, h, w], that fill the image's box whatever their size, or placed ones.
        appearance: Ranges of contrast, texture, bias field, noise, blur and gamma;
            ``Appearance()`` by default.
        field_of_view: Width of the anatomy in mm, whose structures scale with it; by default the
            image's own width, or more where slices are thick.
        background: Share of the samples in which label 0 is the air around a body.
        max_displacement: Largest standard deviation of a displacement, as part of the field of
            view.
        view: Another view shows the same anatomy with another appearance.
        device: Where to compute. Random numbers always come from CPU generators.

    Returns:
        The batch.

    >>> synthesize(range(2), (1, 32, 32), spacing=Spacing.planar()).image.shape
    torch.Size([2, 1, 1, 32, 32])
    """
    return synthesize_views(
        seeds,
        size,
        looks={view: appearance or Appearance()},
        spacing=spacing,
        num_labels=num_labels,
        source=source,
        field_of_view=field_of_view,
        background=background,
        max_displacement=max_displacement,
        device=device,
    )[0]


def synthesize_views(
    seeds: Sequence[int],
    size: tuple[int, int, int],
    *,
    looks: Mapping[int, Appearance],
    spacing: Spacing = Spacing(1.0, 1.0, 1.0),
    num_labels: int = 8,
    source: Source | Tensor | PlacedMaps = "fields",
    field_of_view: float | None = None,
    background: float = 0.5,
    max_displacement: float = 1 / 16,
    only_largest: bool = False,
    device: torch.device | str = "cpu",
) -> list[SyntheticSample]:
    """Make several views of each anatomy, which is drawn once.

    Args:
        seeds: One per sample.
        size: Voxels, (D, H, W).
        looks: Appearances by number of the view; the rest as for :func:`synthesize`.
        spacing: Voxel spacing in mm.
        num_labels: Labels of the anatomy.
        source: Where anatomy comes from.
        field_of_view: Width of the anatomy in mm.
        background: Share of the samples in which label 0 is the air around a body.
        max_displacement: Largest standard deviation of a displacement.
        only_largest: Whether structures of given label maps are numbered by their size in each
            sample, so that they may have any labels; those beyond ``num_labels`` become background.
        device: Where to compute.

    Returns:
        A batch per view, equal to what :func:`synthesize` gives for its number and appearance.
    """
    if len(seeds) == 0:
        raise ValueError("seeds must hold at least one seed, got none")
    if not 2 <= num_labels <= 256:
        raise ValueError(f"num_labels must be 2 to 256, got {num_labels}")
    geometry = plan_geometry(size, spacing=spacing, field_of_view=field_of_view)
    maps = source if isinstance(source, PlacedMaps) else None
    if isinstance(source, Tensor):
        bound = MAX_LABELS if only_largest else num_labels
        checked = _checked_maps(source, num_samples=len(seeds), num_labels=bound)
        maps = fill_box(checked, geometry=geometry)
    elif maps is not None and len(maps.labels) != len(seeds):
        raise ValueError(f"need {len(seeds)} label maps, one per seed, got {len(maps.labels)}")
    elif maps is None and source not in ("fields", "shapes", "mixed"):
        raise ValueError(f"source must be 'fields', 'shapes', 'mixed' or a tensor, got {source!r}")
    recipe = Recipe(
        geometry=geometry,
        num_labels=num_labels,
        source=source if isinstance(source, str) else None,
        looks=looks,
        background=background,
        max_displacement=max_displacement,
        only_largest=only_largest,
    )
    step = _chunk_size(recipe.geometry, device=torch.device(device))
    parts = []
    for start in range(0, len(seeds), step):
        chunk = slice(start, start + step)
        label_maps = None if maps is None else PlacedMaps(*(part[chunk] for part in maps))
        parts.append(_make(seeds[chunk], recipe, label_maps=label_maps, device=device))
    if len(parts) == 1:
        return parts[0]
    views = zip(*parts, strict=True)
    return [SyntheticSample(*map(torch.cat, zip(*chunks, strict=True))) for chunks in views]


def random_spacing(generator: torch.Generator, *, degree: int | None = None) -> Spacing:
    """Draw a plausible spacing.

    Args:
        generator: Source of randomness.
        degree: Degree the spacing must have; by default each from 0 to 5 is as likely.

    Returns:
        Spacing with pixels 0.4 to 1.6 mm wide; degree 5 is a 2D image.
    """
    if degree is None:
        degree = int(torch.randint(MAX_DEGREE + 1, (), generator=generator))
    if not 0 <= degree <= MAX_DEGREE:
        raise ValueError(f"degree must be 0 to {MAX_DEGREE}, got {degree}")
    width, excess = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
    pixel = 0.4 * 4**width
    if degree == MAX_DEGREE:
        return Spacing.planar(pixel, pixel)
    # Half of the degree-0 ones are isotropic; others lie anywhere inside the degree's octave.
    ratio = max(2 * excess, 1.0) if degree == 0 else 2.0 ** (degree + excess)
    return Spacing(pixel * min(ratio, 2.0 ** (degree + 0.999)), pixel, pixel)


def _checked_maps(maps: Tensor, *, num_samples: int, num_labels: int) -> Tensor:
    """Label maps of the user as uint8."""
    if maps.dim() != 4 or len(maps) != num_samples or maps.numel() == 0:
        raise ValueError(
            f"label maps must be [{num_samples}, d, h, w], one per seed, got {list(maps.shape)}"
        )
    if maps.is_floating_point() or maps.is_complex():
        raise ValueError(f"label maps must hold integers, got {maps.dtype}")
    low, high = int(maps.min()), int(maps.max())
    if low < 0 or high >= num_labels:
        raise ValueError(f"labels must be 0 to {num_labels - 1}, got {low} to {high}")
    return maps.to(torch.uint8)


def _chunk_size(geometry: Geometry, *, device: torch.device) -> int:
    """Samples made together: one on a CPU, where it stays in the cache; many elsewhere."""
    depth, height, width = geometry.thin_size
    return 1 if device.type == "cpu" else max(DEVICE_CHUNK // (depth * height * width), 1)


def _make(
    seeds: Sequence[int],
    recipe: Recipe,
    *,
    label_maps: PlacedMaps | None,
    device: torch.device | str,
) -> list[SyntheticSample]:
    """Make all views of the samples of one chunk."""
    geometry = recipe.geometry
    anatomy = sample_generators(seeds, stream=0)
    air = uniform(anatomy, device="cpu") < recipe.background
    thin = _draw_labels(anatomy, recipe, background=air, label_maps=label_maps, device=device)
    labels = thick_labels(thin, slabs=geometry.slabs)
    views = []
    for view, appearance in recipe.looks.items():
        # Separate streams: another view or contrast leaves the anatomy as it is.
        contrast = sample_generators(seeds, stream=2 * view + 1)
        scanner = sample_generators(seeds, stream=2 * view + 2)
        clean = draw_clean(
            contrast,
            thin,
            geometry=geometry,
            num_labels=recipe.num_labels,
            background=air,
            appearance=appearance,
        )
        rendering = render(scanner, clean, geometry=geometry, appearance=appearance)
        sample = SyntheticSample(
            image=rendering.image[:, None],
            labels=labels,
            spacing=torch.tensor(geometry.spacing, device=device).repeat(len(seeds), 1),
            bias=rendering.bias[:, None],
            clean=clean[:, None],
        )
        views.append(sample)
    return views


def _draw_labels(
    generators: Sequence[torch.Generator],
    recipe: Recipe,
    *,
    background: Tensor,
    label_maps: PlacedMaps | None,
    device: torch.device | str,
) -> Tensor:
    """Draw the anatomy of thin slices, uint8, [B, D * slabs, H, W]."""
    geometry, num_labels = recipe.geometry, recipe.num_labels
    max_displacement = recipe.max_displacement
    if label_maps is not None:
        labels = given_labels(
            generators,
            label_maps,
            geometry=geometry,
            max_displacement=max_displacement,
            device=device,
        )
        return keep_largest(labels, num_labels=num_labels) if recipe.only_largest else labels
    draw = shape_labels if recipe.source == "shapes" else field_labels
    labels = draw(
        generators,
        geometry=geometry,
        num_labels=num_labels,
        background=background,
        max_displacement=max_displacement,
        device=device,
    )
    if recipe.source == "mixed":
        body = ((labels > 0) | ~background[:, None, None, None].to(device)).to(torch.uint8)
        paint_shapes(generators, labels, geometry=geometry, num_labels=num_labels, density=0.5)
        labels *= body
    return labels
