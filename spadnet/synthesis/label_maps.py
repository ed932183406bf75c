"""Anatomies from label maps of the user: where a sample lies in a map, how it is turned and warped.

Source: SynthSeg, arXiv 2107.09559.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from spadnet.spacing import Spacing
from spadnet.synthesis.anatomy import (
    along,
    displacement,
    lattice_bases,
    lattice_grids,
    moving_axes,
)
from spadnet.synthesis.fields import separable_rows
from spadnet.synthesis.geometry import Geometry, blocks

MAX_LABELS = 256
ROTATION = 15.0  # degrees about each axis at most
ZOOM = 0.15  # scales lie within 1 - ZOOM and 1 + ZOOM
_TABLE = 1 << 24  # widest range of label values that is looked up in a table


class LabelMap(NamedTuple):
    """A label map of the user.

    Attributes:
        labels: Positions in ``values``, uint8, [d, h, w]; background one voxel wide around it, but
            not above and below a single slice.
        spacing: In mm.
        values: The labels as the user numbers them; the first is 0, the background.
        name: For messages.
        num_labelled: Voxels of each slice that are not background, [d].
    """

    labels: Tensor
    spacing: Spacing
    values: tuple[int, ...]
    name: str
    num_labelled: Tensor

    @property
    def is_planar(self) -> bool:
        """Whether it is a single slice."""
        return len(self.labels) == 1

    @property
    def size(self) -> tuple[int, int, int]:
        """Voxels, without the background around."""
        depth, height, width = self.labels.shape
        return 1 if self.is_planar else depth - 2, height - 2, width - 2


class PlacedMaps(NamedTuple):
    """Label maps and where samples lie in them.

    Attributes:
        labels: uint8, [B, d, h, w].
        start: Where the first corner of the sample's box lies, in voxels of the map, [B, 3].
        per_mm: Voxels of the map in a mm, [B, 3].
        turn: Matrix for vectors in mm from the middle of the box, [B, 3, 3].
    """

    labels: Tensor
    start: Tensor
    per_mm: Tensor
    turn: Tensor


def label_maps(
    arrays: Sequence[Tensor], *, spacings: Sequence[Spacing], names: Sequence[str]
) -> list[LabelMap]:
    """Number the labels of all maps alike.

    Args:
        arrays: Whole numbers of any type, each [d, h, w].
        spacings: In mm, one per map.
        names: For messages, one per map.

    Raises:
        ValueError: If a value is not a whole number, or there are too many labels.
    """
    whole = [_whole(array, name=name) for array, name in zip(arrays, names, strict=True)]
    found = set().union(*(_values(array) for array in whole))
    values = (0, *sorted(found - {0}))
    if len(values) > MAX_LABELS:
        raise ValueError(
            f"{names[0]}{' and others' * (len(names) > 1)}: {len(values)} labels, at most "
            f"{MAX_LABELS} are possible; is it a label map?"
        )
    table = torch.tensor(values).sort()
    maps = []
    for array, spacing, name in zip(whole, spacings, names, strict=True):
        place = torch.searchsorted(table.values, array)
        labels = table.indices.to(torch.uint8)[place]
        above = 0 if len(labels) == 1 else 1
        labels = F.pad(labels, (1, 1, 1, 1, above, above))
        num_labelled = (labels > 0).sum((1, 2))
        maps.append(LabelMap(labels, spacing, values, name, num_labelled))
    return maps


def fill_box(labels: Tensor, *, geometry: Geometry) -> PlacedMaps:
    """Place label maps so that they fill the samples' box, whatever their size.

    Args:
        labels: uint8, [B, d, h, w].
        geometry: Shared by the samples.
    """
    per_mm = [
        0.0 if span[0] == span[1] else count / (span[1] - span[0])
        for count, span in zip(labels.shape[1:], geometry.spans(), strict=True)
    ]
    count = len(labels)
    return PlacedMaps(
        labels,
        start=torch.zeros(count, 3),
        per_mm=torch.tensor(per_mm).repeat(count, 1),
        turn=torch.eye(3).repeat(count, 1, 1),
    )


def place_sample(
    label_map: LabelMap, *, geometry: Geometry, affine: float, generator: torch.Generator
) -> PlacedMaps:
    """Place one sample around a random voxel that is not background, where the map has any.

    Args:
        label_map: Of the user.
        geometry: Of the sample; where it is larger than the map, background lies around.
        affine: Part of the largest rotations and zooms; 0 leaves the map as it is.
        generator: Source of randomness, on the CPU.

    Raises:
        ValueError: If a volume is asked of a single slice.
    """
    if label_map.is_planar and not geometry.spacing.is_planar:
        raise ValueError(f"{label_map.name}: a single slice cannot give volumes; use degree 5")
    shape = torch.tensor(label_map.labels.shape)
    voxel = _labelled_voxel(label_map, generator)
    jitter = torch.rand(3, generator=generator, dtype=torch.float64) / 2 - 0.25
    start, per_mm = torch.zeros(3), torch.zeros(3)
    start[0] = voxel[0]
    for axis in moving_axes(geometry):
        count, extent = int(shape[axis]), geometry.spans()[axis][1]
        per_mm[axis] = 1 / label_map.spacing[axis]
        box = extent / label_map.spacing[axis]
        centre = float(voxel[axis]) + 0.5 + float(jitter[axis]) * box
        centre = count / 2 if box >= count - 2 else min(max(centre, box / 2), count - box / 2)
        start[axis] = centre - box / 2
    turn = _random_turn(generator, affine=affine, is_planar=geometry.spacing.is_planar)
    return PlacedMaps(label_map.labels[None], start[None], per_mm[None], turn[None])


def given_labels(
    generators: Sequence[torch.Generator],
    maps: PlacedMaps,
    *,
    geometry: Geometry,
    max_displacement: float,
    device: torch.device | str,
) -> Tensor:
    """Turn and warp label maps by a random smooth displacement; the nearest voxel decides.

    Args:
        generators: One per sample.
        maps: One per sample. Beyond its border a map goes on as at its border.
        geometry: Shared by the samples.
        max_displacement: Largest standard deviation of a displacement, as part of N.

    Returns:
        Labels of the thin slices, [B, D * slabs, H, W], uint8.
    """
    warp = displacement(
        generators,
        geometry=geometry,
        num_fields=1,
        max_displacement=max_displacement,
        device=device,
    )[:, 0]
    look = _places(warp, maps, geometry=geometry, device=device)
    shape = maps.labels.shape[1:]
    bases = lattice_bases(geometry, device=device)
    kind = torch.int32 if maps.labels.numel() < 1 << 31 else torch.int64
    offset = torch.arange(len(generators), dtype=kind, device=device) * math.prod(shape)
    flat = maps.labels.to(device).flatten()
    labels = torch.empty(len(generators), *geometry.thin_size, dtype=torch.uint8, device=device)
    for rows in blocks(geometry.thin_size, device=device):
        slices, lines, columns = (
            separable_rows(look[:, axis], bases, rows=rows).clamp_(0, count - 0.5).floor_()
            for axis, count in enumerate(shape)
        )
        # Floats hold every index within a slice, but not within a large volume.
        index = columns.add_(lines, alpha=shape[2]).to(kind)
        index += slices.to(kind).mul_(shape[1] * shape[2]).add_(offset[:, None, None, None])
        labels[:, rows] = flat.index_select(0, index.flatten()).view(index.shape)
    return labels


def _places(
    warp: Tensor, maps: PlacedMaps, *, geometry: Geometry, device: torch.device | str
) -> Tensor:
    """Where to look from each node of the lattice, in voxels of the maps, [B, 3, d, h, w].

    Cubic interpolation is exact for linear functions, so the nodes' own places may be added here.
    """
    moving = moving_axes(geometry)
    middle = [sum(span) / 2 for span in geometry.spans()]
    turn, start, per_mm = (part.to(device) for part in (maps.turn, maps.start, maps.per_mm))
    grids = lattice_grids(geometry)
    look = start[:, :, None, None, None].repeat(1, 1, *warp.shape[2:])
    for axis in moving:
        place = warp[:, moving.index(axis)] + middle[axis]
        for other in moving:
            away = along((grids[other].places - middle[other]).float(), other, device=device)
            place += turn[:, axis, other, None, None, None] * away
        look[:, axis] += place * per_mm[:, axis, None, None, None]
    return look


def keep_largest(labels: Tensor, *, num_labels: int) -> Tensor:
    """Number each sample's structures anew, from 1 for the largest on; background stays 0.

    Args:
        labels: uint8, [B, ...].
        num_labels: Background and structures that are kept; smaller ones become background.

    Returns:
        Labels below ``num_labels``, as ``labels``.
    """
    flat = labels.flatten(1)
    table = torch.zeros(len(flat), MAX_LABELS, dtype=torch.uint8, device=labels.device)
    for row, own in zip(table, flat, strict=True):
        count = torch.bincount(own, minlength=MAX_LABELS)[1:]
        largest = count.argsort(descending=True, stable=True)[: num_labels - 1]
        row[1 + largest] = torch.arange(
            1, 1 + len(largest), dtype=torch.uint8, device=labels.device
        )
    return torch.stack(
        [row.index_select(0, own.int()) for row, own in zip(table, flat, strict=True)]
    ).view_as(labels)


def _labelled_voxel(label_map: LabelMap, generator: torch.Generator) -> Tensor:
    """Any voxel that is not background, each as likely; the middle where there is none, [3]."""
    rolls = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
    total = label_map.num_labelled.cumsum(0)
    if total[-1] == 0:
        return torch.tensor(label_map.labels.shape) // 2
    index = torch.searchsorted(total, int(rolls[0] * int(total[-1])), right=True)
    places = label_map.labels[index].nonzero()
    return torch.cat((index[None], places[int(rolls[1] * len(places))]))


def _random_turn(generator: torch.Generator, *, affine: float, is_planar: bool) -> Tensor:
    """A rotation times a zoom of each axis, [3, 3]."""
    rolls = (2 * torch.rand(6, generator=generator, dtype=torch.float64) - 1) * affine
    angles = rolls[:3] * math.radians(ROTATION)
    if is_planar:
        angles[1:] = 0
    turn = torch.diag(1 / (1 + ZOOM * rolls[3:]))
    for axis, angle in enumerate(angles.tolist()):
        first, second = (other for other in range(3) if other != axis)
        rotation = torch.eye(3, dtype=torch.float64)
        rotation[first, first] = rotation[second, second] = math.cos(angle)
        rotation[first, second], rotation[second, first] = -math.sin(angle), math.sin(angle)
        turn = turn @ rotation
    return turn.float()


def _whole(array: Tensor, *, name: str) -> Tensor:
    """A label map as int64."""
    if array.dim() != 3 or array.numel() == 0:
        raise ValueError(f"{name}: a label map must be [d, h, w], got {list(array.shape)}")
    if array.is_floating_point():
        wrong = array[~(array == array.round())]  # NaN is not equal to itself
        if len(wrong):
            raise ValueError(f"{name}: not a label map: {wrong[0].item():g} is not a whole number")
    return array.long().contiguous()


def _values(array: Tensor) -> set[int]:
    """The different values of a label map, int64."""
    low, high = int(array.min()), int(array.max())
    if high - low >= _TABLE:
        return set(array.unique().tolist())
    return set((torch.bincount((array - low).flatten()).nonzero()[:, 0] + low).tolist())
