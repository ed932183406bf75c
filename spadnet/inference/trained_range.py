"""Which spacings a model has seen in training, and whether an image lies beyond them."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from spadnet.data.image import Image
from spadnet.spacing import Spacing

logger = logging.getLogger(__name__)

_SLACK = 1.01  # spacings that differ by less count as equal


class TrainedRange(NamedTuple):
    """Spacings that a model has seen; None where a checkpoint does not tell.

    Attributes:
        in_plane: Smallest and largest in-plane spacing of volumes in mm.
        degrees: Degrees of anisotropy.
    """

    in_plane: tuple[float, float] | None = None
    degrees: tuple[int, ...] | None = None

    @classmethod
    def of(cls, training: Mapping[str, Any]) -> "TrainedRange":
        """Read the entries ``in_plane_mm`` and ``degrees`` of a checkpoint's training facts."""
        in_plane, degrees = _numbers(training, "in_plane_mm"), _numbers(training, "degrees")
        return cls(
            (in_plane[0], in_plane[1]) if len(in_plane) == 2 else None,
            tuple(int(degree) for degree in degrees) or None,
        )

    @classmethod
    def over(cls, spacings: Sequence[Spacing], degrees: Sequence[int]) -> "TrainedRange":
        """Range of the images of a training."""
        sides = [mm for spacing in spacings if not spacing.is_planar for mm in spacing[1:]]
        return cls((min(sides), max(sides)) if sides else None, tuple(degrees))

    def facts(self) -> dict[str, Any]:
        """Entries for a checkpoint's training facts, which :meth:`of` reads."""
        entries = {"in_plane_mm": self.in_plane, "degrees": self.degrees}
        return {name: list(value) for name, value in entries.items() if value is not None}

    def missed_by(self, spacing: Spacing, degree: int | None = None) -> str | None:
        """Say how an image lies beyond the range; None if it does not.

        The pixels of 2D images have no size that one could rely on.

        Args:
            spacing: Of the image as the model sees it, in mm.
            degree: What the model is told; None for the degree of the spacing.
        """
        degree = spacing.degree() if degree is None else degree
        if self.degrees is not None and degree not in self.degrees:
            seen = ", ".join(map(str, sorted(self.degrees)))
            return f"degree {degree} of anisotropy was not in the training (degrees {seen})"
        if self.in_plane is None or spacing.is_planar:
            return None
        low, high = self.in_plane
        for mm in (spacing.y, spacing.x):
            if not low / _SLACK <= mm <= high * _SLACK:
                return f"in-plane spacing {mm:g} mm is outside the trained {low:g} to {high:g} mm"
        return None


class RangeWatch:
    """Warns of the first image that lies beyond what a model has seen, and of no other."""

    def __init__(self, trained: TrainedRange) -> None:
        """Watch for spacings beyond a range."""
        self.trained = trained
        self._has_warned = False

    def look_at(self, image: Image, degree: int | None = None) -> None:
        """Take note of a prepared image, see :meth:`TrainedRange.missed_by`."""
        if not self._has_warned and (reason := self.trained.missed_by(image.spacing, degree)):
            self._has_warned = True
            logger.warning("%s: %s; what comes out may be poor (said once)", image.source, reason)


def _numbers(facts: Mapping[str, Any], name: str) -> list[float]:
    """Numbers of an entry; none where the entry is missing or something else."""
    value = facts.get(name)
    if not isinstance(value, list) or not all(isinstance(n, int | float) for n in value):
        return []
    return [float(number) for number in value]
