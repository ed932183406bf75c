"""Training data whose item number ``step`` is the whole work of that optimiser step."""

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from spadnet.data.augment import IntensityAugment, draw_intensity
from spadnet.data.batch import Batch
from spadnet.data.crop_plan import (
    CropAugment,
    CropPlan,
    Size,
    crop_size,
    degree_chance,
    draw_crop_plan,
    max_token_depth,
)
from spadnet.data.extract import Padding, extract
from spadnet.data.sampler import degrees_of_step, part_of_rank, step_rng
from spadnet.data.volume import Volume
from spadnet.spacing import MAX_DEGREE, Spacing

_TRIES = 32


class _Share(NamedTuple):
    """What one rank makes of a micro-batch: ``rows`` of ``count`` crops, ``depth`` tokens deep."""

    rng: np.random.Generator
    depth: int
    count: int  # type: ignore[assignment]  # the field hides tuple.count, on purpose
    rows: range


class SyntheticSource(Protocol):
    """Makes images from seeds; each depends on its own seed only."""

    def __call__(self, seeds: Sequence[int], size: Size, *, degree: int) -> tuple[Tensor, Tensor]:
        """Make one image per seed.

        Args:
            seeds: One per image.
            size: Voxels (z, y, x).
            degree: Anisotropy.

        Returns:
            Images in [0, 1], [B, 1, D, H, W], and their spacing in mm, [B, 3].
        """
        ...


class StepDataset(Dataset[list[Batch]]):
    """Random crops of images and synthesis; item ``step`` is a list of micro-batches.

    A micro-batch has one degree. An item is a pure function of (seed, step, rank, world size): the
    same at any number of workers, and the ranks' items together are the item of a single process.
    """

    def __init__(
        self,
        volumes: Sequence[Volume],
        *,
        max_steps: int,
        seed: int = 0,
        degrees: Sequence[int] | None = None,
        degrees_per_step: int = 3,
        flat_share: float | None = None,
        tokens: Size = (4, 4, 4),
        token_budget: int = 256,
        in_chans: int = 1,
        synthetic: SyntheticSource | None = None,
        synthetic_share: float = 0.5,
        mix_up: float = 0.0,
        crop_augment: CropAugment = CropAugment(),  # noqa: B008
        intensity_augment: IntensityAugment | None = IntensityAugment(),  # noqa: B008
        padding: Padding = "edge",
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Configure.

        Args:
            volumes: Images to crop; may be empty where there is synthesis.
            max_steps: Number of items.
            seed: Of everything random.
            degrees: Degrees to draw; by default all that the images and the synthesis can give.
            degrees_per_step: Micro-batches per step, each of another degree.
            flat_share: Share of 2D micro-batches (degree 5); None draws all degrees equally often.
            tokens: Tokens of a full crop (z, y, x); shallow images give shallower ones.
            token_budget: Tokens per micro-batch over all ranks, so that micro-batches of flat
                crops are as full as others.
            in_chans: Channels of the crops.
            synthetic: Makes synthetic images.
            synthetic_share: Share of synthetic images where there are real ones too.
            mix_up: Share of the real images that a synthetic one is blended into.
            crop_augment: Geometric augmentation.
            intensity_augment: Intensity augmentation, drawn here and done by
                ``Batch.augmented``; None for none.
            padding: What lies beyond an image's border.
            rank: Of this process.
            world_size: Number of processes that share each step.
        """
        for volume in volumes:
            if volume.image.shape[0] != in_chans:
                raise ValueError(
                    f"{volume.key} has {volume.image.shape[0]} channels, in_chans is {in_chans}"
                )
            if not volume.weight >= 0:
                raise ValueError(f"{volume.key} has weight {volume.weight}")
        if not volumes and synthetic is None:
            raise ValueError("no images and no synthesis to train on")
        if not 0 <= synthetic_share <= 1:
            raise ValueError(f"synthetic_share must lie in [0, 1], got {synthetic_share}")
        if not 0 <= mix_up <= (synthetic is not None):
            raise ValueError(f"mix_up must lie in [0, 1] and needs synthesis, got {mix_up}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank must lie in [0, {world_size}), got {rank}")
        if min(max_steps, degrees_per_step, token_budget, *tokens) < 1:
            raise ValueError(
                "max_steps, degrees_per_step, token_budget and tokens must be positive"
            )
        self.volumes = list(volumes)
        self.max_steps = max_steps
        self.seed = seed
        self.degrees_per_step = degrees_per_step
        self.flat_share = flat_share
        self.tokens = tokens
        self.token_budget = token_budget
        self.in_chans = in_chans
        self.synthetic = synthetic
        self.synthetic_share = synthetic_share if synthetic is not None else 0.0
        self.mix_up = mix_up
        self.crop_augment = crop_augment
        self.intensity_augment = intensity_augment
        self.padding: Padding = padding
        self.rank = rank
        self.world_size = world_size
        self._depths = {degree: self._token_depths(degree) for degree in range(MAX_DEGREE + 1)}
        self.degrees = self._available(degrees)
        if flat_share is not None:
            self._check_flat_share(flat_share)
        self._check_shares()

    def __len__(self) -> int:
        return self.max_steps

    def __getitem__(self, step: int) -> list[Batch]:
        degrees = self._degrees_of(step)
        return [self._micro_batch(step, part, degree) for part, degree in enumerate(degrees)]

    def plans(self, step: int) -> list[list[CropPlan | int]]:
        """What the rows of a step's micro-batches show: crops of images, or seeds of synthesis."""
        shares = [(d, self._share(step, p, d)) for p, d in enumerate(self._degrees_of(step))]
        return [
            [self._draw(step, part, row, degree, share.depth)[0] for row in share.rows]
            for part, (degree, share) in enumerate(shares)
        ]

    def _degrees_of(self, step: int) -> tuple[int, ...]:
        if not 0 <= step < self.max_steps:
            raise IndexError(f"step {step} of {self.max_steps}")
        return degrees_of_step(
            self.seed,
            step,
            degrees=self.degrees,
            per_step=self.degrees_per_step,
            flat_share=self.flat_share,
        )

    def for_rank(self, rank: int, world_size: int) -> "StepDataset":
        """The same data for one of several processes."""
        part = part_of_rank(self, rank, world_size)
        part._check_shares()
        return part

    def _check_shares(self) -> None:
        for degree in self.degrees:
            for depth in {1, *self._depths[degree].tolist()} - {0}:
                self._num_crops(degree, depth)

    def _token_depths(self, degree: int) -> np.ndarray:
        """Depth in tokens that each image can give at a degree; 0 where it cannot."""
        return np.array(
            [
                max_token_depth(
                    _shape(volume),
                    volume.spacing,
                    degree=degree,
                    tokens=self.tokens,
                    augment=self.crop_augment,
                )
                if volume.weight > 0
                else 0
                for volume in self.volumes
            ],
            dtype=int,
        )

    def _available(self, degrees: Sequence[int] | None) -> tuple[int, ...]:
        can = {
            degree
            for degree, depths in self._depths.items()
            if depths.any() or self.synthetic_share > 0
        }
        if degrees is None:
            return tuple(sorted(can))
        missing = sorted(set(degrees) - can)
        if missing or not degrees:
            raise ValueError(f"degrees {list(degrees)}: no image can give {missing or 'them'}")
        return tuple(dict.fromkeys(degrees))

    def _check_flat_share(self, flat_share: float) -> None:
        if not 0 <= flat_share <= 1:
            raise ValueError(f"flat_share must lie in [0, 1], got {flat_share}")
        has_flat, has_deep = MAX_DEGREE in self.degrees, min(self.degrees) < MAX_DEGREE
        if (flat_share > 0 and not has_flat) or (flat_share < 1 and not has_deep):
            raise ValueError(f"flat_share={flat_share} with degrees {list(self.degrees)}")

    def _num_crops(self, degree: int, depth: int) -> int:
        """Crops of a micro-batch over all ranks."""
        per_crop = math.prod((1 if degree == MAX_DEGREE else depth, *self.tokens[1:]))
        count = max(self.token_budget // per_crop, 1)
        if count % self.world_size:
            raise ValueError(
                f"token_budget={self.token_budget} gives {count} crops of degree {degree}, which "
                f"{self.world_size} processes cannot share evenly"
            )
        return count

    def _share(self, step: int, part: int, degree: int) -> "_Share":
        """This rank's part of a micro-batch."""
        rng = step_rng(self.seed, step, part=part, sample=-1)
        depth = self._draw_depth(rng, degree)
        count = self._num_crops(degree, depth)
        share = count // self.world_size
        return _Share(rng, depth, count, range(self.rank * share, (self.rank + 1) * share))

    def _micro_batch(self, step: int, part: int, degree: int) -> Batch:
        work = self._share(step, part, degree)
        crops = [self._crop(step, part, row, degree=degree, depth=work.depth) for row in work.rows]
        image = torch.stack([crop for crop, _, _ in crops])
        intensity = None
        if self.intensity_augment is not None:
            generator = torch.Generator().manual_seed(int(work.rng.integers(1 << 63)))
            draw = draw_intensity(work.count, generator=generator, augment=self.intensity_augment)
            intensity = draw.rows(work.rows.start, work.rows.stop)
        spacing = torch.tensor([spacing for _, spacing, _ in crops], dtype=torch.float32)
        return Batch(image, degree, spacing, [key for _, _, key in crops], intensity)

    def _draw_depth(self, rng: np.random.Generator, degree: int) -> int:
        """Depth of a micro-batch in tokens: what one random image can give."""
        if degree == MAX_DEGREE:
            return 1
        depths = self._depths[degree]
        if not depths.any():
            return self.tokens[0]
        chances = self._chances(depths > 0)
        return int(depths[int(rng.choice(len(depths), p=chances))])

    def _draw(
        self, step: int, part: int, row: int, degree: int, depth: int
    ) -> tuple[CropPlan | int, np.random.Generator]:
        """A crop, or the seed of a synthetic image; and the row's random numbers from there on."""
        rng = step_rng(self.seed, step, part=part, sample=row)
        can = self._depths[degree] >= depth
        if not can.any() or rng.random() < self.synthetic_share:
            return int(rng.integers(1 << 62)), rng
        chances, fractional = self._chances(can), self.crop_augment.fractional_degree
        for _ in range(_TRIES):
            index = int(rng.choice(len(can), p=chances))
            volume = self.volumes[index]
            plan = draw_crop_plan(
                rng,
                _shape(volume),
                volume.spacing,
                tokens=(depth, *self.tokens[1:]),
                degree=degree,
                image=index,
                augment=self.crop_augment,
            )
            chance = degree_chance(plan.spacing, degree, fractional=fractional)
            if not fractional or rng.random() < chance:
                break
        return plan, rng

    def _crop(
        self, step: int, part: int, row: int, *, degree: int, depth: int
    ) -> tuple[Tensor, Spacing, str]:
        drawn, rng = self._draw(step, part, row, degree, depth)
        if isinstance(drawn, int):
            return self._synthesized(drawn, degree=degree, depth=depth)
        volume = self.volumes[drawn.image]
        crop = extract(volume.image, drawn, padding=self.padding)
        if self.mix_up > 0 and rng.random() < self.mix_up:
            other, _, _ = self._synthesized(int(rng.integers(1 << 62)), degree=degree, depth=depth)
            crop = torch.lerp(other, crop, float(rng.random()))
        return crop, drawn.spacing, volume.key

    def _synthesized(self, seed: int, *, degree: int, depth: int) -> tuple[Tensor, Spacing, str]:
        assert self.synthetic is not None
        size = crop_size(degree, (depth, *self.tokens[1:]))
        image, spacing = self.synthetic([seed], size, degree=degree)
        crop = image[0].float().expand(self.in_chans, -1, -1, -1).clamp(0, 1)
        return crop, Spacing(*spacing[0].tolist()), f"synthetic-{seed}"

    def _chances(self, can: np.ndarray) -> np.ndarray:
        weights = np.array([volume.weight for volume in self.volumes]) * can
        return np.asarray(weights / weights.sum())


def _shape(volume: Volume) -> Size:
    _, depth, height, width = volume.image.shape
    return depth, height, width
