"""Endless synthesis as a standard PyTorch data set: item ``index`` depends on nothing else."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from spadnet.spacing import MAX_DEGREE, Spacing
from spadnet.synthesis.appearance import Appearance
from spadnet.synthesis.degradation import corrupted_views
from spadnet.synthesis.fields import mix_seed
from spadnet.synthesis.generate import (
    Source,
    random_spacing,
    synthesize_views,
)
from spadnet.synthesis.geometry import plan_geometry
from spadnet.synthesis.label_maps import LabelMap, PlacedMaps, place_sample

NUM_LABELS = (16, 8)
"""Labels of an anatomy in 2D and in 3D, those of RaSD."""
AFFINE = 1.0  # part of the largest rotations and zooms that given label maps undergo
# Largest displacements as part of the field of view: given anatomies must stay what they are.
DRAWN_DISPLACEMENT, GIVEN_DISPLACEMENT = 1 / 16, 1 / 32

Anatomy = Source | Literal["labels"]
"""Where anatomy comes from; label maps are given by the user."""
SOURCES: tuple[Anatomy, ...] = ("fields", "shapes", "mixed", "labels")
_MAP_STREAM = 1 << 40  # keeps the choice of the label map apart from other draws
Contrast = Literal["same", "random"]


class SyntheticItem(NamedTuple):
    """One synthetic image and what it was made of.

    Attributes:
        image: Intensities in [0, 1], [1, D, H, W].
        labels: Anatomy, uint8, [D, H, W].
        spacing: Millimetres along z, y and x, [3].
        bias: Bias field, a factor around 1, [1, D, H, W].
        clean: The image before bias field, noise, blur and gamma, [1, D, H, W].
        views: The same anatomy through other scanners, from mild to severe, [V, 1, D, H, W].
    """

    image: Tensor
    labels: Tensor
    spacing: Tensor
    bias: Tensor
    clean: Tensor
    views: Tensor


class SyntheticDataset(Dataset[SyntheticItem]):
    """Random images with known anatomy; an item is a pure function of the seed and its index.

    >>> dataset = SyntheticDataset(1000, size=(1, 32, 32))
    >>> dataset[7].image.shape
    torch.Size([1, 1, 32, 32])
    """

    def __init__(
        self,
        num: int,
        *,
        size: tuple[int, int, int] | None = None,
        spacing: Spacing | None = None,
        degree: int | None = None,
        seed: int = 0,
        source: Anatomy = "fields",
        label_maps: Sequence[LabelMap] = (),
        num_labels: int | None = None,
        appearance: Appearance | None = None,
        num_views: int = 0,
        severities: tuple[float, float] = (0.1, 0.9),
        contrast: Contrast = "same",
        device: torch.device | str = "cpu",
    ) -> None:
        """Configure.

        Args:
            num: Number of items.
            size: Voxels, (D, H, W); None for the grid of each label map, which needs
                ``source="labels"``.
            spacing: Of every image in mm; by default random, of ``degree``.
            degree: Anisotropy; by default that of ``spacing``, or 0, or 5 for a single slice.
            seed: Another seed gives other images.
            source: Where anatomy comes from; ``labels`` needs ``label_maps``.
            label_maps: As ``spadnet.synthesis.label_maps`` makes them; each item draws one.
            num_labels: Labels of an anatomy that is drawn; by default 8, or 16 in 2D.
            appearance: Ranges of contrast, texture, bias field, noise, blur and gamma.
            num_views: Further images of each anatomy.
            severities: How corrupted the first and the last of them are, from 0 to 1.
            contrast: Whether they show the intensities of the clean image or others.
            device: Where to compute; the items are the same on every device.

        Raises:
            ValueError: If the arguments cannot go together.
        """
        if num < 0 or num_views < 0:
            raise ValueError(f"num and num_views must not be negative, got {num} and {num_views}")
        if source not in SOURCES:
            raise ValueError(f"source must be one of {', '.join(SOURCES)}, got {source!r}")
        if contrast not in ("same", "random"):
            raise ValueError(f"contrast must be 'same' or 'random', got {contrast!r}")
        if not all(0 <= severity <= 1 for severity in severities):
            raise ValueError(f"severities must be 0 to 1, got {severities}")
        if (source == "labels") != (len(label_maps) > 0):
            raise ValueError("label maps and source='labels' go together")
        if spacing is not None and degree not in (None, spacing.degree()):
            raise ValueError(f"spacing {tuple(spacing)} is of degree {spacing.degree()}")
        if size is None and source != "labels":
            raise ValueError("size is needed where no label map gives one")
        if num_labels is not None and not 2 <= num_labels <= 256:
            raise ValueError(f"num_labels must be 2 to 256, got {num_labels}")
        self.num = num
        self.size = size
        self.spacing = spacing
        self.degree = degree
        self.seed = seed
        self.source: Anatomy = source
        self.label_maps = list(label_maps)
        self.num_labels = num_labels
        self.appearance = appearance
        self.severities = torch.linspace(*severities, num_views).tolist()
        self.contrast: Contrast = contrast
        self.device = device
        candidates: list[LabelMap | None] = [*self.label_maps] or [None]
        for label_map in candidates:  # refuse now what no item could be made of
            spacing, size = self._grid(torch.Generator(), label_map)
            self._source(torch.Generator(), label_map, size=size, spacing=spacing)

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, index: int) -> SyntheticItem:
        if not 0 <= index < self.num:
            raise IndexError(f"item {index} of {self.num}")
        seed, label_map = self.item_seed(index), self.label_map(index)
        generator = torch.Generator().manual_seed(seed)
        spacing, size = self._grid(generator, label_map)
        source = self._source(generator, label_map, size=size, spacing=spacing)

        looks = {0: self.appearance or Appearance()}
        if self.contrast == "random":
            others = map(Appearance.at, self.severities)
            looks |= dict(enumerate(others, start=1))
        sample, *seen = synthesize_views(
            [seed],
            size,
            looks=looks,
            spacing=spacing,
            num_labels=self._num_labels(label_map, spacing),
            source=source,
            max_displacement=DRAWN_DISPLACEMENT if label_map is None else GIVEN_DISPLACEMENT,
            device=self.device,
        )
        views = [other.image for other in seen]
        if self.contrast == "same":
            views = corrupted_views(
                [seed], sample.clean, spacing=spacing, severities=self.severities
            )
        together = torch.cat(views) if views else sample.image[:0]
        image, labels, spacing_mm, bias, clean = (part[0] for part in sample)
        return SyntheticItem(image, labels, spacing_mm, bias, clean, together)

    def item_seed(self, index: int) -> int:
        """Seed of one item."""
        return mix_seed(self.seed, index)

    def label_map(self, index: int) -> LabelMap | None:
        """The label map that an item shows; None where anatomy is drawn."""
        if not self.label_maps:
            return None
        return self.label_maps[mix_seed(self.item_seed(index), _MAP_STREAM) % len(self.label_maps)]

    def grid(self, index: int) -> tuple[Spacing, tuple[int, int, int]]:
        """Spacing and size of an item, without making it."""
        generator = torch.Generator().manual_seed(self.item_seed(index))
        return self._grid(generator, self.label_map(index))

    def _grid(
        self, generator: torch.Generator, label_map: LabelMap | None
    ) -> tuple[Spacing, tuple[int, int, int]]:
        """Spacing and size of an item."""
        spacing = self.spacing
        if spacing is None:
            if self.degree is not None or self.size is not None:
                is_single = self.size is not None and self.size[0] == 1
                degree = MAX_DEGREE if is_single else 0
                degree = degree if self.degree is None else self.degree
                spacing = random_spacing(generator, degree=degree)
            else:
                assert label_map is not None
                spacing = label_map.spacing
        if self.size is not None:
            return spacing, self.size
        assert label_map is not None
        extents = [n * mm for n, mm in zip(label_map.size, label_map.spacing, strict=True)]
        depth, height, width = (
            max(round(extent / mm), 1) for extent, mm in zip(extents, spacing, strict=True)
        )
        return spacing, (1 if spacing.is_planar else depth, height, width)

    def _source(
        self,
        generator: torch.Generator,
        label_map: LabelMap | None,
        *,
        size: tuple[int, int, int],
        spacing: Spacing,
    ) -> Source | PlacedMaps:
        geometry = plan_geometry(size, spacing=spacing, field_of_view=None)
        if label_map is not None:
            return place_sample(label_map, geometry=geometry, affine=AFFINE, generator=generator)
        assert self.source != "labels"
        return self.source

    def _num_labels(self, label_map: LabelMap | None, spacing: Spacing) -> int:
        if label_map is not None:
            return max(len(label_map.values), 2)
        return self.num_labels or NUM_LABELS[not spacing.is_planar]
