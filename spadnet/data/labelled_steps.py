"""Steps of synthetic images whose anatomy is known, alone or beside those of other images."""

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor
from torch.utils.data import Dataset

from spadnet.data.batch import Batch
from spadnet.data.crop_plan import Size, crop_size
from spadnet.data.sampler import degrees_of_step, part_of_rank, step_rng
from spadnet.spacing import MAX_DEGREE

_LABELLED_PART = 1 << 20  # keeps these draws apart from those of other micro-batches of a step


class LabelledImages(NamedTuple):
    """Synthetic images with known anatomy.

    Attributes:
        image: Intensities in [0, 1], [B, 1, D, H, W].
        labels: Anatomy, uint8, [B, D, H, W].
        spacing: Millimetres along z, y, x, [B, 3].
        other_view: The same anatomies with another appearance, as ``image``, or None.
    """

    image: Tensor
    labels: Tensor
    spacing: Tensor
    other_view: Tensor | None


class LabelledSource(Protocol):
    """Makes labelled images from seeds; each depends on its own seed only."""

    def __call__(self, seeds: Sequence[int], size: Size, *, degree: int) -> LabelledImages:
        """Make one image per seed.

        Args:
            seeds: One per image.
            size: Voxels (z, y, x).
            degree: Anisotropy.
        """
        ...


@runtime_checkable
class RankedSteps(Protocol):
    """Steps that several processes share."""

    def __getitem__(self, step: int) -> list[Batch]:
        """Micro-batches of a step."""
        ...

    def for_rank(self, rank: int, world_size: int) -> "RankedSteps":
        """The same data for one of several processes."""
        ...


class LabelledSteps(Dataset[list[Batch]]):
    """Item ``step`` is a list of micro-batches of labelled images, each of one degree.

    An item is a pure function of (seed, step, rank, world size), and the ranks' items together are
    the item of a single process, as in :class:`spadnet.data.datasets.StepDataset`.
    """

    def __init__(
        self,
        source: LabelledSource,
        *,
        max_steps: int,
        seed: int = 0,
        degrees: Sequence[int] = tuple(range(MAX_DEGREE + 1)),
        degrees_per_step: int = 3,
        flat_share: float | None = None,
        tokens: Size = (4, 4, 4),
        token_budget: int = 256,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Configure; see ``StepDataset`` for what the arguments have in common.

        Args:
            source: Makes the images.
            max_steps: Number of items.
            seed: Of everything random.
            degrees: Degrees to draw.
            degrees_per_step: Micro-batches per step, each of another degree.
            flat_share: Share of 2D micro-batches; None draws all degrees equally often.
            tokens: Size of an image in tokens of 16 pixels (z, y, x).
            token_budget: Tokens per micro-batch over all ranks, one image at least.
            rank: Of this process.
            world_size: Number of processes that share each step.
        """
        if min(max_steps, degrees_per_step, token_budget, *tokens) < 1:
            raise ValueError(
                "max_steps, degrees_per_step, token_budget and tokens must be positive"
            )
        if not degrees or not set(degrees) <= set(range(MAX_DEGREE + 1)):
            raise ValueError(f"degrees must be 0 to {MAX_DEGREE}, got {list(degrees)}")
        self.source = source
        self.max_steps = max_steps
        self.seed = seed
        self.degrees = tuple(dict.fromkeys(degrees))
        self.degrees_per_step = degrees_per_step
        self.flat_share = flat_share
        self.tokens = tokens
        self.token_budget = token_budget
        self.rank, self.world_size = rank, world_size
        self._check_shares()

    def __len__(self) -> int:
        return self.max_steps

    def __getitem__(self, step: int) -> list[Batch]:
        if not 0 <= step < self.max_steps:
            raise IndexError(f"step {step} of {self.max_steps}")
        degrees = degrees_of_step(
            self.seed,
            step,
            degrees=self.degrees,
            per_step=self.degrees_per_step,
            flat_share=self.flat_share,
        )
        return [self._micro_batch(step, part, degree) for part, degree in enumerate(degrees)]

    def for_rank(self, rank: int, world_size: int) -> "LabelledSteps":
        """The same data for one of several processes."""
        part = part_of_rank(self, rank, world_size)
        part._check_shares()
        return part

    def _check_shares(self) -> None:
        for degree in self.degrees:
            count = self._num_images(degree)
            if count % self.world_size:
                raise ValueError(
                    f"token_budget={self.token_budget} gives {count} images of degree {degree}, "
                    f"which {self.world_size} processes cannot share evenly"
                )

    def _num_images(self, degree: int) -> int:
        """Images of a micro-batch over all ranks."""
        depth = 1 if degree == MAX_DEGREE else self.tokens[0]
        return max(self.token_budget // math.prod((depth, *self.tokens[1:])), 1)

    def _micro_batch(self, step: int, part: int, degree: int) -> Batch:
        share = self._num_images(degree) // self.world_size
        rows = range(self.rank * share, (self.rank + 1) * share)
        seeds = [
            int(step_rng(self.seed, step, part=_LABELLED_PART + part, sample=row).integers(1 << 62))
            for row in rows
        ]
        made = self.source(seeds, crop_size(degree, self.tokens), degree=degree)
        keys = [f"synthetic-{seed}" for seed in seeds]
        return Batch(
            made.image,
            degree,
            made.spacing,
            keys,
            labels=made.labels,
            other_view=made.other_view,
        )


class JoinedSteps(Dataset[list[Batch]]):
    """The micro-batches of several sources, step by step."""

    def __init__(self, *sources: RankedSteps) -> None:
        """Join ``sources`` of equal length."""
        self.sources = sources

    def __getitem__(self, step: int) -> list[Batch]:
        return [micro for source in self.sources for micro in source[step]]

    def for_rank(self, rank: int, world_size: int) -> "JoinedSteps":
        """The same data for one of several processes."""
        return JoinedSteps(*(source.for_rank(rank, world_size) for source in self.sources))
