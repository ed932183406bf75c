"""What the data side hands to a network."""

from typing import NamedTuple

from torch import Tensor

from spadnet.data.augment import IntensityDraw, apply_intensity


class Batch(NamedTuple):
    """Crops of one degree.

    Attributes:
        image: Intensities in [0, 1], [B, C, D, H, W], float32.
        degree: Anisotropy of every crop.
        spacing: Millimetres along z, y, x, [B, 3].
        keys: What each crop was taken from.
        intensity: Intensity augmentation that is still to be done; None where there is none.
        labels: Known anatomy of synthetic images, uint8, [B, D, H, W]; None of other images.
        other_view: The same anatomies in other images, as ``image``; None where there is one view.
    """

    image: Tensor
    degree: int
    spacing: Tensor
    keys: list[str]
    intensity: IntensityDraw | None = None
    labels: Tensor | None = None
    other_view: Tensor | None = None

    def augmented(self) -> "Batch":
        """Do the intensity augmentation where the image is now: on the device."""
        if self.intensity is None:
            return self
        return self._replace(image=apply_intensity(self.image, self.intensity), intensity=None)
