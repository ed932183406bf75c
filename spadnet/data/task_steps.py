"""Batches of a fine-tuning: cases, crops and augmentation of a step are a function of the step."""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from spadnet.data.augment import IntensityAugment, IntensityDraw, apply_intensity, draw_intensity
from spadnet.data.task_images import TaskImage
from spadnet.data.warp import (
    Warp,
    WarpRange,
    average_slices,
    draw_warp,
    foreground_centre,
    sample,
    turn_to_z,
)
from spadnet.spacing import MAX_DEGREE, Spacing, required_multiple


class Mixture(NamedTuple):
    """What was mixed into the images of a batch (mixup, arXiv 1710.09412).

    Attributes:
        share: Of the images' own intensities and targets, in [0, 1].
        target: Targets of what was mixed in, like those of the batch.
    """

    share: float
    target: Tensor


class LabelledBatch(NamedTuple):
    """Images of one degree with their targets.

    Attributes:
        image: Intensities in [0, 1], [B, C, D, H, W], float32.
        target: Classes, labels or values [B, N], float32; or classes of voxels [B, D, H, W], uint8,
            with n * D slices where slices of the image are the average of n.
        degree: Anisotropy.
        spacing: Millimetres along z, y, x, [B, 3].
        keys: Names of the cases.
        intensity: Intensity augmentation that is still to be done; None where there is none.
        mixture: What other images of the batch were mixed in; None where there are none.
        axis: Of the body that z lies along: 0 for its z, 1 for y, 2 for x.
    """

    image: Tensor
    target: Tensor
    degree: int
    spacing: Tensor
    keys: list[str]
    intensity: IntensityDraw | None = None
    mixture: Mixture | None = None
    axis: int = 0

    @property
    def out_degree(self) -> int | None:
        """Degree of the label maps where their slices are thinner than the images'."""
        if self.target.ndim != self.image.ndim - 1:
            return None
        thinner = self.target.shape[1] // self.image.shape[2]
        return None if thinner == 1 else self.degree - (thinner.bit_length() - 1)

    def augmented(self) -> "LabelledBatch":
        """Do the intensity augmentation where the image is now: on the device."""
        if self.intensity is None:
            return self
        return self._replace(image=apply_intensity(self.image, self.intensity), intensity=None)


class TaskAugment(NamedTuple):
    """What a fine-tuning does to its images.

    Attributes:
        warp: Rotations, scales, shifts and flips.
        intensity: Changes of intensities; None for none.
        thick_prob: Chance of averaging 2 or 4 slices of a nearly isotropic volume along any axis,
            so that the network also sees the degrees of thick slices. Label maps stay fine.
        foreground: Share of segmentation crops around a voxel that is not background.
        mixup: Of classes and labels, both parameters of the Beta distribution of a batch's share
            when images are mixed in pairs; 0 for no mixing.
    """

    warp: WarpRange | None = WarpRange()
    intensity: IntensityAugment | None = IntensityAugment()
    thick_prob: float = 0.0
    foreground: float = 0.33
    mixup: float = 0.0


class TaskSteps(Dataset[list[LabelledBatch]]):
    """Item i is the list of micro-batches of step i, a pure function of seed and step.

    Every case is drawn once before any is drawn twice.
    """

    def __init__(
        self,
        images: Sequence[TaskImage],
        *,
        batch_size: int,
        seed: int = 0,
        crop: tuple[int, int, int] | None = None,
        stride: int = 16,
        micro_batch: int | None = None,
        augment: TaskAugment = TaskAugment(),  # noqa: B008
    ) -> None:
        """Configure.

        Args:
            images: Training cases.
            batch_size: Cases per step.
            seed: Source of every choice.
            crop: Voxels (z, y, x) of a crop of an isotropic image; slices ``2**degree`` times
                thicker are as many times fewer. None takes whole images.
            stride: In-plane stride of the network; crops are rounded up to its multiples.
            micro_batch: Most cases that pass the network together; None for no bound.
            augment: What is done to them.
        """
        if batch_size < 1 or (micro_batch is not None and micro_batch < 1):
            raise ValueError(f"batch sizes must be positive, got {batch_size} and {micro_batch}")
        if not images:
            raise ValueError("no training cases")
        if augment.mixup < 0:
            raise ValueError(f"mixup must not be negative, got {augment.mixup}")
        self.images = images
        self.batch_size = batch_size
        self.seed = seed
        self.crop = crop
        self.stride = stride
        self.micro_batch = micro_batch or batch_size
        self.augment = augment

    def __len__(self) -> int:
        return 1 << 62  # the trainer's number of steps decides

    def __getitem__(self, step: int) -> list[LabelledBatch]:
        groups: dict[tuple[int, ...], list[tuple[int, int]]] = defaultdict(list)
        drawn = {}
        for place, index in enumerate(self.indices(step)):
            rng = np.random.default_rng((self.seed, 1, step, place))
            image, target, degree, spacing, axis = self._draw(self.images[index], rng)
            drawn[place] = image, target, spacing
            groups[degree, axis, *image.shape, *target.shape].append((place, index))
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + step) % (1 << 63))
        rng = np.random.default_rng((self.seed, 2, step))
        batches = []
        for (degree, axis, *_), members in sorted(groups.items()):
            for first in range(0, len(members), self.micro_batch):
                part = members[first : first + self.micro_batch]
                change = self.augment.intensity
                batch = LabelledBatch(
                    torch.stack([drawn[place][0] for place, _ in part]),
                    torch.stack([drawn[place][1] for place, _ in part]),
                    degree,
                    torch.tensor([drawn[place][2] for place, _ in part]),
                    [self.images[index].key for _, index in part],
                    None
                    if change is None
                    else draw_intensity(len(part), generator=generator, augment=change),
                    axis=axis,
                )
                batches.append(mix(batch, rng, self.augment.mixup) if self.augment.mixup else batch)
        return batches

    def indices(self, step: int) -> list[int]:
        """Cases of a step."""
        count = len(self.images)
        first, stop = step * self.batch_size, (step + 1) * self.batch_size
        orders = {
            epoch: np.random.default_rng((self.seed, 0, epoch)).permutation(count)
            for epoch in range(first // count, (stop - 1) // count + 1)
        }
        return [int(orders[number // count][number % count]) for number in range(first, stop)]

    def _draw(
        self, case: TaskImage, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor, int, Spacing, int]:
        is_map = case.target.ndim == 3
        slab, axis, degree = 1, case.axis, case.degree
        is_thick = degree == 0 and rng.random() < self.augment.thick_prob
        upright = case.upright() if is_thick else case
        label = upright.target if is_map else None
        image, spacing = upright.image, upright.spacing
        if is_thick:
            slab = 2 ** int(rng.integers(1, 3))
            axis = int(rng.integers(3))
            image, label, spacing = turn_to_z(image, label, spacing, axis=axis)
            degree = slab.bit_length() - 1
        warp = Warp.none() if self.augment.warp is None else draw_warp(rng, self.augment.warp)
        warp = warp.flat() if degree == MAX_DEGREE else warp.turned(axis)
        if self.crop is None:
            size = tuple(image.shape[1:])
            centre = tuple((n - 1) / 2 for n in size)
        else:
            depth, *plane = self.size(degree)
            size = (slab * depth, *plane)
            wants = label is not None and rng.random() < self.augment.foreground
            centre = foreground_centre(rng, image.shape[1:], size, label if wants else None)
        image = sample(image, size, centre, warp, spacing, border=is_map)
        if slab > 1:
            image = average_slices(image, slab=slab)
        thick = spacing._replace(z=slab * spacing.z)
        if label is None:
            return image, case.target, degree, thick, axis
        label = sample(label[None], size, centre, warp, spacing, nearest=True, border=True)[0]
        return image, label, degree, thick, axis

    def size(self, degree: int) -> tuple[int, int, int]:
        """Voxels of a crop of some degree."""
        assert self.crop is not None
        depth = 1 if degree == MAX_DEGREE else max(self.crop[0] >> degree, 1)
        steps = required_multiple(degree, stride=self.stride)
        sizes = (depth, *self.crop[1:])
        z, y, x = (-(-size // step) * step for size, step in zip(sizes, steps, strict=True))
        return z, y, x


def mix(batch: LabelledBatch, rng: np.random.Generator, concentration: float) -> LabelledBatch:
    """Mix the images of a batch in pairs.

    Args:
        batch: Images of classes or labels.
        rng: Decides the pairs and the share.
        concentration: Both parameters of the Beta distribution of the share.
    """
    share = float(rng.beta(concentration, concentration))
    order = torch.from_numpy(rng.permutation(len(batch.keys)))
    image = share * batch.image + (1 - share) * batch.image[order]
    return batch._replace(image=image, mixture=Mixture(share, batch.target[order]))
