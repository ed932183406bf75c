"""Where the voxels of a synthetic image lie, in millimetres."""

import math
from typing import NamedTuple

import torch

from spadnet.spacing import Spacing
from spadnet.synthesis.fields import Grid, Span

MAX_SLABS = 8
"""Thin slices that are averaged into one thick slice, at most."""

BLOCK = 1 << 17
"""Voxels worked on at once on a CPU, few enough to stay in its cache."""


class Geometry(NamedTuple):
    """The voxels of a sample; the first begins at 0 mm on every axis.

    Attributes:
        size: Voxels, (D, H, W).
        spacing: Voxel spacing in mm.
        slabs: Thin slices made for each slice; their average is the thick slice.
        field_of_view: Width of the whole anatomy in mm; its structures scale with it.
    """

    size: tuple[int, int, int]
    spacing: Spacing
    slabs: int
    field_of_view: float

    @property
    def thin_size(self) -> tuple[int, int, int]:
        """Size before thin slices are averaged, (D * slabs, H, W)."""
        return self.size[0] * self.slabs, self.size[1], self.size[2]

    @property
    def pixel(self) -> float:
        """The finer of the in-plane spacings in mm."""
        return min(self.spacing.y, self.spacing.x)

    def spans(self, *, margin: float = 0.0) -> tuple[Span, Span, Span]:
        """Stretch of each axis in mm, widened by ``margin`` where there is any."""
        depth, height, width = (
            (-margin, count * step + margin)
            for count, step in zip(self.size, self.spacing, strict=True)
        )
        return (0.0, 0.0) if self.spacing.is_planar else depth, height, width

    def voxels(self, *, thin: bool) -> tuple[Grid, Grid, Grid]:
        """Voxel centres along z, y and x."""
        if self.spacing.is_planar:
            depth = Grid(0.0, 1.0, 1)
        else:
            step = self.spacing.z / self.slabs if thin else self.spacing.z
            depth = Grid(step / 2, step, self.thin_size[0] if thin else self.size[0])
        return (
            depth,
            Grid(self.spacing.y / 2, self.spacing.y, self.size[1]),
            Grid(self.spacing.x / 2, self.spacing.x, self.size[2]),
        )


def plan_geometry(
    size: tuple[int, int, int], *, spacing: Spacing, field_of_view: float | None
) -> Geometry:
    """Check a size and a spacing and lay out the sample.

    Args:
        size: Voxels, (D, H, W).
        spacing: Voxel spacing in mm.
        field_of_view: Width of the anatomy in mm; None for the image's own width, or more where
            its structures would else be thinner than a slice.

    Raises:
        ValueError: If size, spacing or field of view make no image.
    """
    if len(size) != 3 or min(size) < 1:
        raise ValueError(f"size must be three positive numbers (D, H, W), got {size}")
    degree = spacing.degree()  # refuses NaN, zero and negative spacings
    if spacing.is_planar and size[0] != 1:
        raise ValueError(f"a planar spacing needs a single slice, got size {size}")
    depth = 0.0 if spacing.is_planar else spacing.z
    slabs = 1
    if degree > 0 and not spacing.is_planar:
        ratio = spacing.z / min(spacing.y, spacing.x)
        slabs = min(2 ** round(math.log2(ratio)), MAX_SLABS)
    if field_of_view is None:
        width = math.sqrt(size[1] * spacing.y * size[2] * spacing.x)
        field_of_view = max(width, 6 * depth)
    if not 0 < field_of_view < math.inf:
        raise ValueError(f"field_of_view must be positive and finite, got {field_of_view}")
    return Geometry((size[0], size[1], size[2]), spacing, slabs, field_of_view)


def blocks(
    size: tuple[int, int, int], *, device: torch.device | str, multiple: int = 1
) -> list[slice]:
    """Cut the slices of a volume into blocks that stay in a CPU's cache; one block elsewhere.

    Args:
        size: Voxels, (D, H, W).
        multiple: Every block starts at a multiple of it.
    """
    depth, height, width = size
    step = depth
    if torch.device(device).type == "cpu":
        step = max(BLOCK // (height * width * multiple), 1) * multiple
    return [slice(start, min(start + step, depth)) for start in range(0, depth, step)]
