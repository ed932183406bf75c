"""Images that are in two splits, whole or nearly: they make scores flatter."""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from spadnet.data.journal import hash_of
from spadnet.data.task_images import CaseReader, Preparation
from spadnet.data.tasks import SPLITS, Case, TaskData
from spadnet.evaluate.features import Extractor, Features, Views

THRESHOLD = 0.995
"""Correlation of thumbnails from which two images count as nearly alike."""

_FLAT = (1, 32, 32)  # voxels of a thumbnail of a slice
_DEEP = (8, 12, 12)
_CHUNK = 1024


class Duplicate(NamedTuple):
    """Two images of different splits.

    Attributes:
        first: Case of the earlier split (train, val, test).
        second: Case of the later split.
        splits: Of both.
        correlation: Of their thumbnails.
        exact: Whether all their voxels are equal.
    """

    first: str
    second: str
    splits: tuple[str, str]
    correlation: float
    exact: bool


def thumbnail_extractor() -> Extractor:
    """Small versions of images, of mean 0 and length 1."""

    def pooled(views: Views) -> Tensor:
        x = views.image.mean(1, keepdim=True)
        small = F.adaptive_avg_pool3d(x, _FLAT if x.shape[2] == 1 else _DEEP).flatten(1)
        small = F.normalize(small - small.mean(1, keepdim=True))
        return F.pad(small, (0, math.prod(_DEEP) - small.shape[1]))  # one length for both

    return Extractor(hash_of(["thumbnail", 1, _FLAT, _DEEP]), pooled, pooled)


def find_duplicates(
    task: TaskData,
    thumbnails: Features,
    *,
    rule: Preparation,
    threshold: float = THRESHOLD,
) -> list[Duplicate]:
    """Compare the images of each two splits, and all voxels of those that look alike.

    Args:
        task: The task.
        thumbnails: Of all its cases.
        rule: How images are read.
        threshold: As :data:`THRESHOLD`.
    """
    reader = CaseReader(rule, num_classes=len(task.classes))
    cases = {split: task.of(split) for split in SPLITS}
    found = []
    for one, other in combinations(SPLITS, 2):
        for i, j, value in _alike(thumbnails.values, one, other, threshold):
            first, second = cases[one][i], cases[other][j]
            exact = same_voxels(reader, first, second)
            found.append(Duplicate(first.key, second.key, (one, other), value, exact))
    return sorted(found, key=lambda pair: (not pair.exact, -pair.correlation))


def _alike(
    values: Mapping[str, Tensor], one: str, other: str, threshold: float
) -> Sequence[tuple[int, int, float]]:
    """Nearest image of ``one`` to each of ``other``, where it is near enough."""
    if one not in values or other not in values:
        return []
    bank, rows = values[one].float(), []
    for start, part in enumerate(values[other].float().split(_CHUNK)):
        best = (part @ bank.T).max(1)
        for j in (best.values >= threshold).nonzero()[:, 0].tolist():
            rows.append((int(best.indices[j]), start * _CHUNK + j, float(best.values[j])))
    return rows


def same_voxels(reader: CaseReader, first: Case, second: Case) -> bool:
    """Whether two cases' images as read are equal."""
    one, other = reader.image(first).array, reader.image(second).array
    return one.shape == other.shape and bool(np.array_equal(one, other))
