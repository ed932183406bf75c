"""What the data side hands to a network."""

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """Crops of one degree.

    Attributes:
        image: Intensities in [0, 1], [B, C, D, H, W], float32.
        degree: Anisotropy of every crop.
        spacing: Millimetres along z, y, x, [B, 3].
        keys: What each crop was taken from.
    """

    image: Tensor
    degree: int
    spacing: Tensor
    keys: list[str]
