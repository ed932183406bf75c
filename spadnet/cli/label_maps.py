"""Label maps of the user that synthesis paints: read for ``synthesize`` and for pre-training."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from spadnet.cli.usage import UsageError
from spadnet.data.image import ImageError, file_name
from spadnet.data.inputs import list_items
from spadnet.data.io import read_image
from spadnet.spacing import MAX_DEGREE, Spacing
from spadnet.synthesis import LabelMap, label_maps


def read_label_maps(source: str) -> Iterator[tuple[Tensor, Spacing, str]]:
    """Read label maps one after the other.

    Args:
        source: Folder, glob pattern, file, or table of files; see ``spadnet.data.inputs``.

    Yields:
        Voxels [d, h, w] of any type, their spacing in mm, and a name for messages.

    Raises:
        ImageError: If there is nothing, or a file cannot be used.
    """
    for item in list_items(source):
        image = read_image(item.path, spacing=item.spacing)
        if image.array.shape[0] != 1:
            raise ImageError(
                f"{file_name(item.path)}: {image.array.shape[0]} channels; a label map has one"
            )
        array = image.array[0]
        voxels = torch.from_numpy(array if array.dtype.kind == "f" else array.astype("i8"))
        yield voxels, image.spacing, item.key


def maps_to_train_on(section: Mapping[str, Any], *, degrees: Sequence[int]) -> list[LabelMap]:
    """Read the label maps that a ``data`` section names, each with a numbering of its own.

    Args:
        section: As plain types.
        degrees: That the training draws.

    Returns:
        Label maps; none where the section names none.

    Raises:
        UsageError: If the share is none, or no label map can give one of the degrees.
        ValueError: If a file is no label map; the message names it.
    """
    share = section["label_map_share"]
    if not isinstance(share, int | float) or not 0 <= share <= 1:
        raise UsageError(f"data.label_map_share must lie in [0, 1], got {share}")
    if section["label_maps"] is None:
        return []
    maps = []
    for voxels, spacing, name in read_label_maps(str(section["label_maps"])):
        (label_map,) = label_maps([voxels], spacings=[spacing], names=[name])
        if not label_map.num_labelled.any():
            raise ImageError(f"{name}: a label map without labels: all its voxels are 0")
        maps.append(label_map)
    has_volumes = any(degree < MAX_DEGREE for degree in degrees)
    if has_volumes and all(label_map.is_planar for label_map in maps):
        raise UsageError(
            f"{maps[0].name}: label maps that are single slices need data.degrees=[{MAX_DEGREE}]"
        )
    return maps


def map_checksums(maps: Sequence[LabelMap]) -> list[str]:
    """Name and a checksum of the voxels of each label map."""
    return [
        f"{one.name} {hashlib.sha256(one.labels.numpy().tobytes()).hexdigest()[:16]}"
        for one in maps
    ]
