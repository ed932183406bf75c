"""Label maps and the cells of a grid of patches: shares of classes in a cell, masks from cells.

A cell covers the same box of the image however finely that was resampled, so that both ways are
products of one small matrix per axis.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from spadnet.data.image import ImageError
from spadnet.data.task_images import CaseReader, Preparation
from spadnet.data.tasks import Case, TaskData
from spadnet.evaluate.features import Features
from spadnet.evaluate.segmentation_scores import dice_of


class PatchLabels(NamedTuple):
    """Label maps of a split, and where the cells of their grids lie.

    Attributes:
        maps: Classes on each image's own grid, uint8 [D, H, W].
        grids: Cells of each image (z, y, x).
        cells: Length of a cell in voxels of the image as read, for each image (z, y, x).
    """

    maps: list[Tensor]
    grids: list[tuple[int, ...]]
    cells: list[tuple[float, ...]]


def read_labels(task: TaskData, split: str, features: Features, rule: Preparation) -> PatchLabels:
    """Read the label maps of a split.

    Args:
        task: Of label maps.
        split: Which.
        features: Of its images; tell the grids.
        rule: What was done to the images; it must not cut them.

    Raises:
        ValueError: If the preparation cuts images.
        ImageError: If label maps cannot be used; the message tells of all.
    """
    if rule.crop:
        raise ValueError("data.cut_to_body=false is needed to score features of label maps")
    reader = CaseReader(rule, num_classes=len(task.classes))
    maps, faults = [], []
    cases: list[Case] = task.of(split)  # type: ignore[arg-type]
    for case in cases:
        try:
            maps.append(torch.from_numpy(reader.label(case, reader.image(case))))
        except ImageError as error:
            faults.append(str(error))
    if faults:
        raise ImageError("; ".join(faults))
    grids = [tuple(row) for row in features.grids[split].tolist()]
    cells = []
    for label, size, patch in zip(
        maps, features.sizes[split].tolist(), features.patches[split].tolist(), strict=True
    ):
        cells.append(tuple(p * n / s for p, n, s in zip(patch, label.shape, size, strict=True)))
    return PatchLabels(maps, grids, cells)


def class_shares(labels: PatchLabels, count: int) -> Tensor:
    """Share of each class in each cell of all images one after the other, [T, K]."""
    parts = []
    for label, grid, cell in zip(*labels, strict=True):
        one_hot = torch.nn.functional.one_hot(label.long(), count).float()
        matrices = [_overlap(n, g, c) for n, g, c in zip(label.shape, grid, cell, strict=True)]
        parts.append(torch.einsum("zyxk,dz,hy,wx->dhwk", one_hot, *matrices).reshape(-1, count))
    return torch.cat(parts)


def dice_per_case(shares: Tensor, labels: PatchLabels) -> Tensor:
    """Dice of the classes but the background, [N, K - 1], of what cells say.

    Args:
        shares: Predicted share of each class in each cell, [T, K].
        labels: The label maps.
    """
    rows, start, count = [], 0, shares.shape[1]
    for label, grid, cell in zip(*labels, strict=True):
        stop = start + grid[0] * grid[1] * grid[2]
        own = shares[start:stop].view(*grid, count)
        start = stop
        matrices = [_linear(n, g, c) for n, g, c in zip(label.shape, grid, cell, strict=True)]
        fine = torch.einsum("dhwk,zd,yh,xw->zyxk", own, *matrices)
        rows.append(dice_of(fine.argmax(-1), label, count))
    return torch.tensor(rows)


def _overlap(length: int, count: int, cell: float) -> Tensor:
    """Weights [count, length] that average voxels over cells."""
    edges = torch.arange(length + 1, dtype=torch.float32)
    starts = cell * torch.arange(count, dtype=torch.float32)[:, None]
    low = torch.maximum(edges[:-1], starts)
    high = torch.minimum(edges[1:], starts + cell)
    weight = (high - low).clamp_min(0)
    return weight / weight.sum(1, keepdim=True).clamp_min(1e-6)


def _linear(length: int, count: int, cell: float) -> Tensor:
    """Weights [length, count] that interpolate between the middles of cells."""
    place = ((torch.arange(length) + 0.5) / cell - 0.5).clamp(0, count - 1)
    low = place.floor().long().clamp_max(max(count - 2, 0))
    share = place - low
    weight = torch.zeros(length, count)
    rows = torch.arange(length)
    weight[rows, low] += 1 - share
    weight[rows, (low + 1).clamp_max(count - 1)] += share
    return weight


def pick_cells(counts: Sequence[int], most: int, *, seed: int) -> Tensor:
    """Places of at most so many cells out of all, ascending.

    Args:
        counts: Cells of each image.
        most: Largest number wanted.
        seed: Decides which.
    """
    total = sum(counts)
    if total <= most:
        return torch.arange(total)
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(total, generator=generator)[:most].sort().values
