"""Random anatomies from Gaussian random fields.

Sources: RaSD, arXiv 2602.12317, SynthMorph, arXiv 2004.10282. All structures scale with the field
of view N: fields of grid scale N/8 and N/4, displacements of scale N/16, N/8 and N/4. Warping
happens on a coarse lattice; only its result is brought to the voxels.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from spadnet.synthesis.fields import (
    Grid,
    keys_basis,
    node_grid,
    normal,
    num_nodes,
    separable,
    spline_basis,
    uniform,
)
from spadnet.synthesis.geometry import Geometry
from spadnet.synthesis.tiles import upsampled_argmax

FIELD_SCALES = (1 / 8, 1 / 4)
WARP_SCALES = (1 / 16, 1 / 8, 1 / 4)
SOURCE_STEP = 1 / 24  # fields are laid out this finely before they are warped
LATTICE_STEP = (1 / 48, 1 / 28)  # and warped on this lattice, in 2D and in 3D
SPLINE_NORM = 0.69  # root of the summed squares of a cubic B-spline's weights, 0.68 to 0.71


def field_labels(
    generators: Sequence[torch.Generator],
    *,
    geometry: Geometry,
    num_labels: int,
    background: Tensor,
    max_displacement: float,
    device: torch.device | str,
) -> Tensor:
    """Draw label maps as the argmax of warped Gaussian random fields.

    Args:
        generators: One per sample.
        geometry: Shared by the samples.
        num_labels: Number of fields.
        background: Whether label 0 is the air around a rounded body, bool, [B].
        max_displacement: Largest standard deviation of a displacement, as part of N.

    Returns:
        Labels of the thin slices, [B, D * slabs, H, W], uint8.
    """
    lattice = lattice_grids(geometry)
    warp = displacement(
        generators,
        geometry=geometry,
        num_fields=num_labels,
        max_displacement=max_displacement,
        device=device,
    )
    scores = _warped_fields(generators, warp, geometry=geometry, device=device)
    outline = body_outline(generators, grids=lattice, geometry=geometry, device=device)
    scores[:, 0] += torch.where(background[:, None, None, None].to(device), outline, 0.0)
    return upsampled_argmax(scores, lattice_bases(geometry, device=device))


def lattice_grids(geometry: Geometry) -> tuple[Grid, Grid, Grid]:
    """Places where warped fields are evaluated: a coarse lattice, or the voxels where fewer."""
    step = max(
        geometry.field_of_view * LATTICE_STEP[not geometry.spacing.is_planar], 2 * geometry.pixel
    )
    depth, height, width = (
        Grid(-step, step, num_nodes(span, step)) if num_nodes(span, step) < grid.num else grid
        for span, grid in zip(geometry.spans(), geometry.voxels(thin=True), strict=True)
    )
    return depth, height, width


def lattice_bases(geometry: Geometry, *, device: torch.device | str) -> list[Tensor | None]:
    """Matrices from the lattice to the voxels of thin slices."""
    return [
        keys_basis(grid, nodes=nodes, device=device)
        for grid, nodes in zip(geometry.voxels(thin=True), lattice_grids(geometry), strict=True)
    ]


def displacement(
    generators: Sequence[torch.Generator],
    *,
    geometry: Geometry,
    num_fields: int,
    max_displacement: float,
    device: torch.device | str,
) -> Tensor:
    """Draw smooth displacements on the lattice.

    The standard deviation of each scale is uniform up to ``max_displacement`` for the widest scale
    and less for finer ones, in proportion: steeper displacements fold.

    Returns:
        Displacements in mm, [B, num_fields, 3 (2 in a plane), d, h, w].
    """
    view = geometry.field_of_view
    num_axes = len(moving_axes(geometry))
    finest = view * min(WARP_SCALES)
    # Lattice nodes lie outside the volume too: two cells are more than enough for them.
    spans = geometry.spans(margin=2 * finest)
    knots = [node_grid(span, finest) for span in spans]
    # Wider scales are added to the finest one's coefficients; they are smooth enough for it.
    total = torch.zeros((), device=device)
    for scale in WARP_SCALES:
        nodes = [node_grid(span, scale * view) for span in geometry.spans(margin=4 * finest)]
        if scale == min(WARP_SCALES):
            nodes = knots
        high = max_displacement * view * scale / max(WARP_SCALES)
        std = uniform(generators, num_fields, 1, 1, 1, 1, between=(0, high), device=device)
        noise = normal(
            generators, num_fields, num_axes, *(grid.num for grid in nodes), device=device
        )
        if nodes is not knots:
            bases = [
                spline_basis(grid, nodes=node, device=device)
                for grid, node in zip(knots, nodes, strict=True)
            ]
            noise = separable(noise, bases) * SPLINE_NORM**num_axes
        total = total + noise * std
    return separable(
        total,
        [
            spline_basis(grid, nodes=node, device=device)
            for grid, node in zip(lattice_grids(geometry), knots, strict=True)
        ],
    )


def _warped_fields(
    generators: Sequence[torch.Generator],
    warp: Tensor,
    *,
    geometry: Geometry,
    device: torch.device | str,
) -> Tensor:
    """Gaussian random fields read at displaced lattice places, [B, L, d, h, w]."""
    view, num_labels = geometry.field_of_view, warp.shape[1]
    spans = geometry.spans(margin=view / 8)  # beyond the margin fields go on as at its border
    step = view * SOURCE_STEP
    grids = [
        Grid(span[0], step, 1 if span[0] == span[1] else math.ceil((span[1] - span[0]) / step) + 1)
        for span in spans
    ]
    source = torch.zeros((), device=device)
    for scale in FIELD_SCALES:
        nodes = [node_grid(span, scale * view) for span in spans]
        noise = normal(generators, num_labels, *(grid.num for grid in nodes), device=device)
        std = uniform(generators, num_labels, 1, 1, 1, device=device)
        bases = [
            spline_basis(grid, nodes=node, device=device)
            for grid, node in zip(grids, nodes, strict=True)
        ]
        source = source + separable(noise * std, bases)

    moving = moving_axes(geometry)
    places = lattice_grids(geometry)
    look = torch.empty(*warp.shape[:2], *warp.shape[3:], len(moving), device=device)
    for index, axis in enumerate(moving):
        per_mm = 2 / (step * (grids[axis].num - 1))
        unit = (places[axis].places - grids[axis].start) * per_mm - 1
        # grid_sample counts axes backwards: x first.
        torch.add(
            along(unit.float(), axis, device=device),
            warp[:, :, index],
            alpha=per_mm,
            out=look[..., -1 - index],
        )
    look, fields = look.flatten(0, 1), source.flatten(0, 1)
    if len(moving) == 2:
        look = look[:, 0]
    else:
        fields = fields[:, None]
    out = F.grid_sample(fields, look, padding_mode="border", align_corners=True)
    return out.view(*warp.shape[:2], *warp.shape[3:])


def body_outline(
    generators: Sequence[torch.Generator],
    *,
    grids: Sequence[Grid],
    geometry: Geometry,
    device: torch.device | str,
) -> Tensor:
    """Draw a rounded body: above 0 outside it and below inside, within -4 and 8, [B, d, h, w]."""
    centre = uniform(generators, 3, between=(0.42, 0.58), device=device)
    radius = uniform(generators, 3, between=(0.32, 0.55), device=device)
    radius[:, 0] *= uniform(generators, between=(1.0, 4.0), device=device)
    exponent = uniform(generators, 1, between=(1.8, 3.5), device=device)
    total = torch.zeros((), device=device)
    for axis in moving_axes(geometry):
        extent = geometry.spans()[axis][1]
        unit = (grids[axis].places / extent).float().to(device)
        distance = ((unit - centre[:, axis, None]).abs() / radius[:, axis, None]) ** exponent
        shape = [len(generators), 1, 1, 1]
        shape[axis + 1] = -1
        total = total + distance.view(shape)
    return ((total - 1) * 4).clamp(max=8)


def moving_axes(geometry: Geometry) -> list[int]:
    """Axes that have an extent: y and x in a plane, all three else."""
    return [1, 2] if geometry.spacing.is_planar else [0, 1, 2]


def along(values: Tensor, axis: int, *, device: torch.device | str) -> Tensor:
    """Shape [n] so that it broadcasts along one axis of [..., d, h, w]."""
    shape = [1, 1, 1]
    shape[axis] = -1
    return values.view(shape).to(device)
