"""What a training learns from, in a few numbers and one checksum that changes when the data do."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from spadnet.data.task_images import TaskImage
from spadnet.data.tasks import TaskData
from spadnet.data.volume import Volume


def identity_of_volumes(
    volumes: Sequence[Volume], *, num_held_out: int = 0, catalogues: Iterable[Path] = ()
) -> dict[str, Any]:
    """Describe images of a pre-training.

    Args:
        volumes: Images that are trained on.
        num_held_out: Images kept out of the training.
        catalogues: Of the stores that hold the images: these know the checksums of their files.
            Voxels in memory are read.

    Returns:
        Numbers of images by degree, data set and modality, and ``sha256``; plain types.
    """
    total = hashlib.sha256()
    for path in catalogues:
        total.update(path.read_bytes())
    for volume in volumes:
        shape = tuple(volume.image.shape)
        total.update(repr((volume.key, shape, tuple(volume.spacing), volume.weight)).encode())
        if isinstance(volume.image, Tensor):
            total.update(_bytes(volume.image))
    return {
        "images": len(volumes),
        "held_out": num_held_out,
        "degrees": _counts(str(volume.spacing.degree()) for volume in volumes),
        "datasets": _counts(volume.dataset or "unknown" for volume in volumes),
        "modalities": _counts(volume.modality or "unknown" for volume in volumes),
        "sha256": total.hexdigest(),
    }


def identity_of_task(task: TaskData, images: Sequence[TaskImage]) -> dict[str, Any]:
    """Describe the cases of a fine-tuning.

    Args:
        task: All cases.
        images: Those of training and validation as they are read.

    Returns:
        Numbers of cases by split, the classes, and ``sha256`` over images and targets.
    """
    total = hashlib.sha256()
    for image in images:
        total.update(repr((image.key, tuple(image.image.shape), tuple(image.spacing))).encode())
        total.update(_bytes(image.image))
        total.update(_bytes(image.target))
    return {
        "name": task.name,
        "kind": task.kind,
        "classes": list(task.classes),
        "cases": _counts(case.split for case in task.cases),
        "sha256": total.hexdigest(),
    }


def _bytes(tensor: Tensor) -> memoryview:
    """The numbers of a tensor, one after the other in memory."""
    return np.ascontiguousarray(tensor.numpy()).data


def _counts(names: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items()))
