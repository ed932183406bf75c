"""The largest of many smooth scores at every voxel, without holding all scores at full size."""

import math
from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from spadnet.synthesis.fields import separable

TILE = 1 << 14  # voxels whose label is decided at once, few enough to stay in a CPU's cache
CLOSE = 0.4  # labels further behind at the nodes do not get ahead between them


class Strip(NamedTuple):
    """A part of one axis.

    Attributes:
        voxels: Its voxels.
        nodes: Lattice nodes that they are interpolated from.
        around: Those of the nodes that lie next to a voxel.
        basis: Matrix from nodes to voxels; None where they are the same.
    """

    voxels: slice
    nodes: slice
    around: slice
    basis: Tensor | None


def upsampled_argmax(scores: Tensor, bases: Sequence[Tensor | None]) -> Tensor:
    """Label of the largest upsampled score, without holding all scores at full resolution.

    The volume is worked on in tiles. On a CPU a label takes part in a tile only if it comes within
    ``CLOSE`` of the largest score at a node of it: most labels are far from most tiles.

    Args:
        scores: One score per label on the lattice, [B, L, d, h, w].
        bases: Matrices from lattice to voxels for z, y, x.

    Returns:
        Labels, [B, D, H, W], uint8.
    """
    batch, num_labels = scores.shape[:2]
    bits = (1 << (num_labels - 1).bit_length()) - 1
    size = [
        nodes if basis is None else len(basis)
        for nodes, basis in zip(scores.shape[2:], bases, strict=True)
    ]
    axes = [
        _strips(basis, count=count, step=step)
        for basis, count, step in zip(
            bases, size, _tile_size(size, device=scores.device), strict=True
        )
    ]
    tags = torch.arange(num_labels, dtype=torch.int32, device=scores.device)[:, None, None, None]
    labels = torch.empty(batch, *size, dtype=torch.uint8, device=scores.device)
    tiles = list(product(*axes))
    everything = (slice(0, batch), [slice(None)] * len(tiles))
    groups: list[tuple[slice, Sequence[slice | Tensor]]] = [everything]
    if scores.device.type == "cpu":
        groups = [
            (slice(index, index + 1), _candidates(sample, axes))
            for index, sample in enumerate(scores)
        ]
    for samples, candidates in groups:
        for tile, chosen in zip(tiles, candidates, strict=True):
            part = scores[samples, :, tile[0].nodes, tile[1].nodes, tile[2].nodes][:, chosen]
            score = separable(part, [strip.basis for strip in tile])
            # The label rides in the lowest bits of the score: one maximum finds both.
            tagged = score.view(torch.int32).bitwise_and(~bits).bitwise_or_(tags[chosen])
            best = tagged.view(torch.float32).amax(1).view(torch.int32).bitwise_and_(bits)
            labels[samples, tile[0].voxels, tile[1].voxels, tile[2].voxels] = best
    return labels


def _strips(basis: Tensor | None, *, count: int, step: int) -> list[Strip]:
    """Cut an axis of ``count`` voxels into strips of ``step``."""
    strips = []
    for start in range(0, count, step):
        voxels = slice(start, min(start + step, count))
        if basis is None:
            strips.append(Strip(voxels, voxels, voxels, None))
            continue
        rows = basis[voxels]
        used = (rows != 0).any(0).nonzero()[:, 0]
        near = (rows > 0).any(0).nonzero()[:, 0]  # the weights of the outer nodes are negative
        nodes = slice(int(used[0]), int(used[-1]) + 1)
        around = slice(int(near[0]), int(near[-1]) + 1)
        strips.append(Strip(voxels, nodes, around, rows[:, nodes].contiguous()))
    return strips


def _candidates(scores: Tensor, axes: Sequence[Sequence[Strip]]) -> list[Tensor]:
    """Labels that may be the largest somewhere in each tile, in the order of ``product``.

    Args:
        scores: One score per label on the lattice, [L, d, h, w].
        axes: Strips of z, y and x.
    """
    behind = scores.amax(0) - scores
    for dim, strips in enumerate(axes, start=1):
        near = [
            behind.narrow(dim, strip.around.start, strip.around.stop - strip.around.start)
            for strip in strips
        ]
        behind = torch.stack([part.amin(dim) for part in near], dim)
    is_close = behind.flatten(1).mT < CLOSE
    return list(is_close.nonzero()[:, 1].split(is_close.sum(1).tolist()))


def _tile_size(size: Sequence[int], *, device: torch.device) -> list[int]:
    """Voxels of a tile along z, y and x: few that are near each other on a CPU."""
    if device.type != "cpu":
        return [128, 512, 512]
    depth = min(size[0], 16)
    side = math.isqrt(TILE // depth)
    return [depth, side, side]
