"""Smooth random fields in millimetres, made from few numbers by products along each axis.

A field is white noise on coarse nodes times one small matrix per axis. The matrices hold a cubic
B-spline (or a Gaussian) at the places of the voxels in mm, so the same noise gives the same field
whatever the voxels are. All noise is drawn on the CPU, from one generator per sample.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

Span = tuple[float, float]
"""A stretch of one axis in mm; both ends are equal on an axis without depth."""


class Grid(NamedTuple):
    """Regular places along one axis: ``num`` of them from ``start`` on, ``step`` mm apart."""

    start: float
    step: float
    num: int

    @property
    def places(self) -> Tensor:
        """Places in mm, float64."""
        return self.start + torch.arange(self.num, dtype=torch.float64) * self.step


def sample_generators(seeds: Sequence[int], *, stream: int) -> list[torch.Generator]:
    """Make one CPU generator per sample; different streams of one seed are independent."""
    return [torch.Generator().manual_seed(mix_seed(int(seed), stream)) for seed in seeds]


def mix_seed(seed: int, stream: int) -> int:
    """SplitMix64 of both numbers: near seeds give unrelated ones, below 2**63."""
    mask = (1 << 64) - 1
    state = (seed * 0x9E3779B97F4A7C15 + stream * 0xD1B54A32D192ED03 + 0x2545F4914F6CDD1D) & mask
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
    return (state ^ (state >> 31)) & ((1 << 63) - 1)


def normal(
    generators: Sequence[torch.Generator], *shape: int, device: torch.device | str
) -> Tensor:
    """Draw standard normal numbers, [B, *shape]."""
    out = torch.empty(len(generators), *shape)
    for row, generator in zip(out, generators, strict=True):
        torch.randn(shape, generator=generator, out=row)
    return out.to(device)


def uniform(
    generators: Sequence[torch.Generator],
    *shape: int,
    between: tuple[float, float] = (0.0, 1.0),
    device: torch.device | str,
) -> Tensor:
    """Draw uniform numbers, [B, *shape]."""
    low, high = between
    out = torch.stack([torch.rand(shape, generator=generator) for generator in generators])
    return out.mul_(high - low).add_(low).to(device)


def num_nodes(span: Span, cell: float) -> int:
    """Count the nodes a cubic B-spline needs to cover a span; one where there is no depth."""
    extent = span[1] - span[0]
    return 1 if extent == 0 else math.ceil(extent / cell - 1e-6) + 3


def node_grid(span: Span, cell: float) -> Grid:
    """Lay the nodes of a cubic B-spline over a span."""
    nodes = num_nodes(span, cell)
    return Grid(span[0] if nodes == 1 else span[0] - cell, cell, nodes)


@lru_cache(maxsize=256)
def spline_basis(grid: Grid, *, nodes: Grid, device: torch.device | str) -> Tensor:
    """Cubic B-spline weights whose product with white noise has unit variance everywhere.

    Args:
        grid: Where the field is wanted.
        nodes: Where the noise lies.

    Returns:
        Weights, [grid.num, nodes.num].
    """
    if nodes.num == 1:
        return torch.ones(grid.num, 1, device=device)
    distance = (grid.places[:, None] - nodes.places).abs() / nodes.step
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = (2 - distance).clamp_min(0) ** 3 / 6
    weight = torch.where(distance < 1, near, far)
    norm = weight.square().sum(1, keepdim=True).sqrt().clamp_min(1e-9)
    return (weight / norm).float().to(device)


@lru_cache(maxsize=256)
def keys_basis(grid: Grid, *, nodes: Grid, device: torch.device | str) -> Tensor | None:
    """Keys' cubic interpolation from values at the nodes; None where the grids are the same.

    Returns:
        Weights, [grid.num, nodes.num].
    """
    if grid == nodes:
        return None
    distance = (grid.places[:, None] - nodes.places).abs() / nodes.step
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    weight = torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))
    return (weight / weight.sum(1, keepdim=True)).float().to(device)


def gaussian_basis(grid: Grid, *, nodes: Grid, fwhm: Tensor, device: torch.device | str) -> Tensor:
    """Like ``spline_basis`` with a Gaussian of its own width for every sample.

    Args:
        grid: Where the field is wanted.
        nodes: Where the noise lies, at most half the smallest width apart.
        fwhm: Full width at half maximum in mm, [B], on the CPU.

    Returns:
        Weights, [B, grid.num, nodes.num].
    """
    distance = (grid.places[:, None] - nodes.places) / fwhm.double()[:, None, None]
    weight = torch.exp(-4 * math.log(2) * distance**2)
    return (weight / weight.square().sum(2, keepdim=True).sqrt()).float().to(device)


def separable(values: Tensor, bases: Sequence[Tensor | None]) -> Tensor:
    """Multiply values on coarse nodes by one matrix per axis.

    Args:
        values: Values at the nodes, [..., d, h, w].
        bases: Matrices for z, y and x, each [n, nodes] or [B, n, nodes]; None leaves an axis.

    Returns:
        Values at the places of the matrices, [..., D, H, W].
    """
    along_z, along_y, along_x = bases
    if along_z is not None:
        plane = values.shape[-2:]
        values = torch.matmul(along_z, values.flatten(-2)).unflatten(-1, plane)
    if along_y is not None:
        values = torch.matmul(_per_slice(along_y), values)
    if along_x is not None:
        values = torch.matmul(values, _per_slice(along_x).mT)
    return values


def separable_rows(values: Tensor, bases: Sequence[Tensor | None], *, rows: slice) -> Tensor:
    """Like ``separable``, for some slices only."""
    along_z, along_y, along_x = bases
    if along_z is None:
        return separable(values[:, rows], (None, along_y, along_x))
    return separable(values, (along_z[..., rows, :], along_y, along_x))


def _per_slice(basis: Tensor) -> Tensor:
    """Insert the slice axis; one matrix for all samples makes one large product."""
    if basis.dim() == 3 and len(basis) == 1:
        basis = basis[0]
    return basis if basis.dim() == 2 else basis.unsqueeze(-3)
