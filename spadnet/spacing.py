"""Voxel spacing and what it decides: the degree of anisotropy and the strides that follow.

Source: SPAD-Nets, arXiv 2312.07630, section 3.
"""

import math
from collections.abc import Sequence
from operator import index
from typing import NamedTuple

MAX_DEGREE = 5
"""Largest degree: a single slice seen through a total stride of 16 (one more than log2 16)."""

PLANAR_DEPTH = 1e8
"""Slice spacing of a 2D image in mm: one slice, infinitely thick for every practical purpose."""


class Spacing(NamedTuple):
    """Distance between neighbouring voxels along z, y and x in millimetres.

    >>> Spacing(5.0, 0.8, 0.8).degree()
    2
    >>> Spacing.planar().degree()
    5
    """

    z: float
    y: float
    x: float

    @classmethod
    def planar(cls, y: float = 1.0, x: float = 1.0) -> "Spacing":
        """Spacing of a 2D image: one infinitely thick slice with pixels of ``y`` by ``x`` mm."""
        return cls(PLANAR_DEPTH, y, x)

    @property
    def is_planar(self) -> bool:
        """Whether this is the spacing of a 2D image."""
        return self.z >= PLANAR_DEPTH

    def degree(self, max_degree: int = MAX_DEGREE) -> int:
        """Degree of anisotropy: ``floor(log2(z / min(y, x)))``, clamped to ``[0, max_degree]``.

        Args:
            max_degree: Upper bound, the degree of a 2D image.

        Returns:
            How many in-plane halvings come before depth is halved for the first time.

        Raises:
            ValueError: If a component is NaN, zero or negative, or infinite in-plane.
        """
        for name, value in zip(self._fields, self, strict=True):
            if not value > 0 or (math.isinf(value) and name != "z"):
                raise ValueError(f"spacing must be positive and finite, got {name}={value}")
        # A relative margin keeps 2**n exact for spacings stored as float32.
        ratio = self.z / min(self.y, self.x) * (1 + 1e-6)
        if ratio >= 2.0**max_degree:
            return max_degree
        return max(math.floor(math.log2(ratio)), 0)


def depth_stride(stride: int, degree: int) -> int:
    """Stride along depth of a layer with in-plane ``stride`` that sees ``degree`` at its input.

    >>> [depth_stride(16, degree) for degree in range(6)]
    [16, 8, 4, 2, 1, 1]
    """
    # index() makes torch.compile take the degree as a constant: one graph per degree.
    return stride >> min(index(degree), stride.bit_length() - 1)


def required_multiple(degree: int, *, stride: int = 16) -> tuple[int, int, int]:
    """Sizes (z, y, x) must be multiples of this for a network of the given total stride.

    >>> required_multiple(2)
    (4, 16, 16)
    """
    return depth_stride(stride, degree), stride, stride


def depth_axis(spacing: Sequence[float], *, tolerance: float = 0.01) -> int | None:
    """Return the array axis that must become z: the one whose spacing is the odd one out.

    The two remaining in-plane spacings are as alike as possible.

    Args:
        spacing: Spacing of the three array axes in mm.
        tolerance: Largest difference in mm at which two spacings count as equal.

    Returns:
        The axis, or None where all three spacings are equal and nothing is odd.
    """
    if max(spacing) - min(spacing) <= tolerance:
        return None
    in_plane_difference = [
        abs(spacing[(axis + 1) % 3] - spacing[(axis + 2) % 3]) for axis in range(3)
    ]
    return min(range(3), key=lambda axis: (in_plane_difference[axis], -spacing[axis]))


def turned_axes(axis: int) -> tuple[int, int, int]:
    """Which axes become z, y and x when ``axis`` turns to z."""
    return (0, 1, 2) if axis == 0 else (axis, 0, 3 - axis)
