"""A second anatomy source: ellipsoids, boxes and bent tubes, each drawn inside its own box only."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from spadnet.synthesis.anatomy import body_outline
from spadnet.synthesis.geometry import Geometry
from spadnet.synthesis.label_maps import fill_box, given_labels

SHAPES_PER_LABEL = (3, 6)  # in 2D and in 3D
SIZES = (0.03, 0.3)  # half the longest axis of a shape, as part of the field of view
WALLED = 0.3  # share of the shapes that have a wall of another label
ELLIPSOID, BOX, TUBE = range(3)
KINDS = (ELLIPSOID, ELLIPSOID, BOX, TUBE, TUBE)

Vector = tuple[float, float, float]


class Shape(NamedTuple):
    """One shape. Its own axes are u, v and w; lengths are in mm, vectors are (z, y, x).

    Attributes:
        kind: ``ELLIPSOID``, ``BOX`` or ``TUBE`` (along u).
        centre: Where its middle is.
        axes: Directions of u, v and w.
        radii: Half lengths along u, v and w.
        bend: How far the ends of a tube swerve along v, as part of its half length.
        inner: Size of the inside as part of the shape; 1 for a shape without a wall.
        labels: Label of the wall and label of the inside.
    """

    kind: int
    centre: Vector
    axes: tuple[Vector, Vector, Vector]
    radii: Vector
    bend: float
    inner: float
    labels: tuple[int, int]

    @property
    def reach(self) -> list[float]:
        """Half lengths of an upright box around it, along z, y and x."""
        lengths = list(self.radii)
        if self.kind == TUBE:
            lengths[1] += abs(self.bend) * lengths[0]
        parts = [
            [abs(axis[dim]) * length for axis, length in zip(self.axes, lengths, strict=True)]
            for dim in range(3)
        ]
        return [math.hypot(*part) if self.kind == ELLIPSOID else sum(part) for part in parts]


def shape_labels(
    generators: Sequence[torch.Generator],
    *,
    geometry: Geometry,
    num_labels: int,
    background: Tensor,
    max_displacement: float,
    device: torch.device | str,
) -> Tensor:
    """Fill a body, or the whole image, with shapes and warp it.

    Args:
        generators: One per sample.
        geometry: Shared by the samples.
        num_labels: Labels are below it.
        background: Whether label 0 is the air around a rounded body, bool, [B].
        max_displacement: Largest standard deviation of a displacement, as part of the view.

    Returns:
        Labels of the thin slices, [B, D * slabs, H, W], uint8.
    """
    grids = geometry.voxels(thin=True)
    outline = body_outline(generators, grids=grids, geometry=geometry, device=device)
    air = background.to(device)[:, None, None, None]
    body = ((outline < 0) | ~air).to(torch.uint8)
    labels = body * air
    paint_shapes(generators, labels, geometry=geometry, num_labels=num_labels, density=1.0)
    return given_labels(
        generators,
        fill_box(labels.mul_(body), geometry=geometry),
        geometry=geometry,
        max_displacement=max_displacement,
        device=device,
    )


def paint_shapes(
    generators: Sequence[torch.Generator],
    labels: Tensor,
    *,
    geometry: Geometry,
    num_labels: int,
    density: float,
) -> None:
    """Paint shapes over label maps, large ones first.

    Args:
        generators: One per sample.
        labels: Thin slices, [B, D * slabs, H, W], uint8; changed in place.
        geometry: Shared by the samples.
        num_labels: Labels are below it.
        density: How many shapes, as part of those that fill an image.
    """
    per_label = SHAPES_PER_LABEL[not geometry.spacing.is_planar]
    count = max(round(density * per_label * num_labels), 1)
    for sample, generator in zip(labels, generators, strict=True):
        shapes = draw_shapes(generator, geometry=geometry, num_labels=num_labels, count=count)
        for shape in shapes:
            _paint(sample, shape, geometry=geometry)


def draw_shapes(
    generator: torch.Generator, *, geometry: Geometry, num_labels: int, count: int
) -> list[Shape]:
    """Draw the shapes of one sample, large ones first."""
    rolls = torch.rand(count, 12, generator=generator, dtype=torch.float64)
    rolls = rolls[rolls[:, 0].argsort(descending=True)]  # the first roll is the size
    axes = _rotations(torch.randn(count, 4, generator=generator, dtype=torch.float64))
    if geometry.spacing.is_planar:
        axes = _plane_rotations(2 * math.pi * rolls[:, 11])
    labels = torch.randint(num_labels, (count, 2), generator=generator).tolist()
    shapes = []
    for roll, rotation, (wall, inside) in zip(rolls.tolist(), axes.tolist(), labels, strict=True):
        size, kind = _size(roll[0]) * geometry.field_of_view, KINDS[int(len(KINDS) * roll[1])]
        across = (0.1 + 0.2 * roll[2], 0.1 + 0.2 * roll[2])
        if kind != TUBE:
            across = (0.4 + 0.6 * roll[2], 0.4 + 0.6 * roll[3])
        centre = [
            span[0] + (span[1] - span[0]) * part
            for span, part in zip(geometry.spans(), roll[4:7], strict=True)
        ]
        walled = roll[7] < WALLED
        shapes.append(
            Shape(
                kind=kind,
                centre=(centre[0], centre[1], centre[2]),
                axes=(tuple(rotation[0]), tuple(rotation[1]), tuple(rotation[2])),
                radii=(size, size * across[0], size * across[1]),
                bend=1.4 * roll[8] - 0.7,
                inner=0.6 + 0.3 * roll[9] if walled else 1.0,
                labels=(wall, inside if walled else wall),
            )
        )
    return shapes


def _size(roll: float) -> float:
    """Half the longest axis as part of the view, from a number in [0, 1): more small than large."""
    low, high = SIZES
    return low + (high - low) * roll**1.5


def _paint(labels: Tensor, shape: Shape, *, geometry: Geometry) -> None:
    """Write one shape into a label map, [D, H, W]."""
    window, offsets = [], []
    for grid, centre, reach in zip(
        geometry.voxels(thin=True), shape.centre, shape.reach, strict=True
    ):
        first = max(math.ceil((centre - reach - grid.start) / grid.step), 0)
        last = min(math.floor((centre + reach - grid.start) / grid.step) + 1, grid.num)
        if first >= last:
            return
        window.append(slice(first, last))
        place = torch.arange(first, last, device=labels.device, dtype=torch.float32)
        offsets.append(place * grid.step + (grid.start - centre))
    u, v, w = (
        (axis[0] / radius * offsets[0])[:, None, None]
        + ((axis[1] / radius * offsets[1])[:, None] + axis[2] / radius * offsets[2])
        for axis, radius in zip(shape.axes, shape.radii, strict=True)
    )
    if shape.kind == BOX:
        inside = torch.maximum(u.abs_(), torch.maximum(v.abs_(), w.abs_())).square_()
    else:
        if shape.kind == TUBE:
            v -= u.square().sub_(0.5).mul_(shape.bend * shape.radii[0] / shape.radii[1])
        across = v.square_().addcmul_(w, w)
        u.square_()
        inside = torch.maximum(u, across) if shape.kind == TUBE else across.add_(u)
    wall, core = shape.labels
    part = labels[tuple(window)]
    part.masked_fill_(inside < 1, wall)
    if shape.inner < 1:
        part.masked_fill_(inside < shape.inner**2, core)


def _rotations(quaternions: Tensor) -> Tensor:
    """Rotation matrices of quaternions of any length, [n, 3, 3]."""
    a, b, c, d = (quaternions / quaternions.norm(dim=1, keepdim=True)).unbind(1)
    rows = [
        [1 - 2 * (c * c + d * d), 2 * (b * c - a * d), 2 * (b * d + a * c)],
        [2 * (b * c + a * d), 1 - 2 * (b * b + d * d), 2 * (c * d - a * b)],
        [2 * (b * d - a * c), 2 * (c * d + a * b), 1 - 2 * (b * b + c * c)],
    ]
    return torch.stack([torch.stack(row, 1) for row in rows], 1)


def _plane_rotations(angles: Tensor) -> Tensor:
    """Rotations of u and v in the plane, with w along z, [n, 3, 3]."""
    zero, one = torch.zeros_like(angles), torch.ones_like(angles)
    rows = [
        [zero, angles.cos(), angles.sin()],
        [zero, -angles.sin(), angles.cos()],
        [one, zero, zero],
    ]
    return torch.stack([torch.stack(row, 1) for row in rows], 1)
