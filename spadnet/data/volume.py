"""Prepared images that training crops are cut from."""

from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from spadnet.data.extract import BoxReader
from spadnet.data.image import Image
from spadnet.data.preprocess import to_channels
from spadnet.spacing import Spacing

Voxels = TypeVar("Voxels", bound=Tensor | BoxReader)


class Volume(NamedTuple, Generic[Voxels]):
    """A prepared image, in memory or on disk.

    Attributes:
        image: [C, D, H, W], float16 or float32 in [0, 1], or uint8 that stands for it times 255;
            or what reads boxes of it.
        spacing: In mm.
        key: Name for logs.
        weight: How often it is drawn, relative to others.
        dataset: Data set it belongs to; may be empty.
        modality: Kind of image, such as CT; may be empty.
    """

    image: Voxels
    spacing: Spacing
    key: str
    weight: float = 1.0
    dataset: str = ""
    modality: str = ""


def to_volume(
    image: Image,
    *,
    in_chans: int = 1,
    weight: float = 1.0,
    dtype: torch.dtype = torch.float16,
    dataset: str = "",
) -> Volume[Tensor]:
    """Keep a prepared image for training.

    Args:
        image: As ``prepare`` gives it, in [0, 1].
        in_chans: Channels of the models that will see it.
        weight: How often it is drawn, relative to others.
        dtype: float16, float32, or uint8 to save memory.
        dataset: Data set it belongs to.
    """
    array = torch.from_numpy(np.ascontiguousarray(to_channels(image.array, in_chans)))
    stored = (array * 255).round().to(dtype) if dtype == torch.uint8 else array.to(dtype)
    return Volume(stored, image.spacing, image.source, weight, dataset, image.modality or "")
