"""Synthetic images have the wanted degree and depend on their own seed only."""

import pytest
import torch

from spadnet.data.crop_plan import NO_AUGMENT, Size, crop_size
from spadnet.data.datasets import StepDataset
from spadnet.data.volume import Volume
from spadnet.spacing import MAX_DEGREE, Spacing, required_multiple
from spadnet.synthesis.dataset import NUM_LABELS
from spadnet.synthesis.label_maps import LabelMap, label_maps
from spadnet.train.synthetic import (
    MAP_LABELS,
    labelled_images,
    spacing_within,
    synthetic_images,
)


@pytest.mark.parametrize("degree", range(MAX_DEGREE + 1))
def test_degree_and_range(degree: int) -> None:
    depth = required_multiple(degree)[0]
    image, spacing = synthetic_images([3, 4], (depth, 32, 32), degree=degree)
    assert image.shape == (2, 1, depth, 32, 32)
    assert 0 <= image.min() < image.max() <= 1
    for row in spacing.tolist():
        assert Spacing(*row).degree() == degree
    alone, _ = synthetic_images([4], (depth, 32, 32), degree=degree)
    assert torch.equal(alone[0], image[1])


def test_any_anatomy_is_each_as_often():
    images, _ = synthetic_images(range(6), (1, 16, 16), degree=5, source="any")
    for seed, source in ((0, "fields"), (1, "shapes"), (2, "mixed"), (4, "shapes")):
        alone, _ = synthetic_images([seed], (1, 16, 16), degree=5, source=source)
        assert torch.equal(images[seed], alone[0])


def test_unknown_anatomy_is_refused():
    with pytest.raises(ValueError, match="brains"):
        synthetic_images([0], (1, 16, 16), degree=5, source="brains")


def step_data(**settings: object) -> StepDataset:
    volumes = [Volume(torch.full((1, 32, 40, 40), 0.75), Spacing(1, 1, 1), "flat")]
    return StepDataset(
        volumes,
        max_steps=4,
        degrees=(0,),
        degrees_per_step=1,
        tokens=(1, 2, 2),
        token_budget=32,
        synthetic=synthetic_images,
        synthetic_share=0.0,
        intensity_augment=None,
        crop_augment=NO_AUGMENT,
        **settings,
    )


def test_mix_up_blends_synthesis_into_its_share_of_the_real_crops() -> None:
    plain = [crop for step in range(4) for crop in step_data()[step][0].image]
    mixed = [crop for step in range(4) for crop in step_data(mix_up=0.5)[step][0].image]
    changed = [crop for crop, real in zip(mixed, plain, strict=True) if not torch.equal(crop, real)]
    assert 8 < len(changed) < 24  # of 32
    for crop in changed:
        assert 0 <= crop.min() < crop.max() <= 1
    assert all(torch.equal(real, torch.full_like(real, 0.75)) for real in plain)
    again = step_data(mix_up=0.5)[2][0]
    assert torch.equal(again.image, torch.stack(mixed[16:24]))
    assert set(again.keys) == {"flat"}


@pytest.mark.parametrize("settings", [{"mix_up": 1.5}, {"mix_up": -0.1}, {"mix_up": torch.nan}])
def test_impossible_mix_up_is_named(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="mix_up"):
        step_data(**settings)


@pytest.mark.parametrize(("degree", "size"), [(5, (1, 32, 32)), (3, (2, 32, 32))])
def test_labelled_images_show_one_anatomy_twice(degree: int, size: Size) -> None:
    made = labelled_images([3, 4], size, degree=degree)
    images, spacing = synthetic_images([3, 4], size, degree=degree)
    assert torch.equal(made.spacing, spacing)
    assert made.labels.shape == (2, *size)
    assert 1 < made.labels.unique().numel() <= NUM_LABELS[degree < MAX_DEGREE]
    assert made.other_view is not None
    assert made.other_view.shape == made.image.shape == images.shape
    assert 0 <= made.other_view.min() < made.other_view.max() <= 1
    for view in (made.image, made.other_view):
        assert explained(view, made.labels) > 2 * explained(view, made.labels.roll(1, 0))
    assert not torch.allclose(made.image, made.other_view, atol=0.1)
    single = labelled_images([4], size, degree=degree, severities=None)
    assert single.other_view is None
    assert torch.equal(single.image[0], made.image[1])
    assert torch.equal(single.labels[0], made.labels[1])


def explained(images: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of the intensities' variance that labels explain."""
    shares = []
    for image, own in zip(images[:, 0], labels, strict=True):
        means = torch.zeros_like(image)
        for label in own.unique():
            means[own == label] = image[own == label].mean()
        shares.append(float(means.var() / image.var()))
    return sum(shares) / len(shares)


def test_severity_of_the_second_view_can_be_chosen() -> None:
    mild, severe = (
        labelled_images(range(8), (1, 32, 32), degree=5, severities=(s, s)) for s in (0.0, 1.0)
    )
    assert torch.equal(mild.image, severe.image)
    assert mild.other_view is not None
    assert severe.other_view is not None
    assert explained(mild.other_view, mild.labels) > explained(severe.other_view, severe.labels)


def cubes(shape: Size, *, spacing: Spacing, side: int = 8) -> LabelMap:
    """A label map of cubes, a third of them background, the others of many labels."""
    planes, rows, columns = (torch.arange(num) // side for num in shape)
    number = 31 * planes[:, None, None] + 7 * rows[:, None] + columns
    labels = torch.where(number % 3 == 0, 0, number % 90)
    (label_map,) = label_maps([labels], spacings=[spacing], names=["cubes"])
    return label_map


@pytest.mark.parametrize("degree", range(MAX_DEGREE + 1))
def test_images_of_label_maps_show_one_anatomy_twice(degree: int) -> None:
    maps = [cubes((64, 96, 96), spacing=Spacing(1, 1, 1))]
    size, seeds = crop_size(degree, (2, 2, 2)), range(4)
    made = labelled_images(seeds, size, degree=degree, label_maps=maps, label_map_share=1.0)
    assert made.labels.shape == (4, *size)
    assert made.labels.dtype == torch.uint8
    for row in made.spacing.tolist():
        assert Spacing(*row).degree() == degree
    for labels in made.labels:
        assert 1 < len(labels.unique()) <= MAP_LABELS
        assert 0.05 < (labels == 0).float().mean() < 0.9
    assert made.other_view is not None
    for view in (made.image, made.other_view):
        assert 0 <= view.min() < view.max() <= 1
        assert explained(view, made.labels) > 2 * explained(view, made.labels.roll(1, 0))
    alone = labelled_images([2], size, degree=degree, label_maps=maps, label_map_share=1.0)
    assert torch.equal(alone.image[0], made.image[2])
    assert torch.equal(alone.labels[0], made.labels[2])
    assert alone.other_view is not None
    assert torch.equal(alone.other_view[0], made.other_view[2])


def test_share_of_label_maps_leaves_the_other_images_as_they_are() -> None:
    maps = [cubes((1, 64, 64), spacing=Spacing.planar()), cubes((9, 64, 64), spacing=(3, 1, 1))]
    plain, some, none, every = (
        labelled_images(range(40), (1, 16, 16), degree=5, label_maps=given, label_map_share=share)
        for given, share in (((), 0.5), (maps, 0.5), (maps, 0.0), (maps, 1.0))
    )
    assert torch.equal(none.image, plain.image)
    drawn = [torch.equal(a, b) for a, b in zip(some.image, plain.image, strict=True)]
    assert 10 < sum(drawn) < 30
    given = [torch.equal(a, b) for a, b in zip(some.image, every.image, strict=True)]
    assert [not is_drawn for is_drawn in drawn] == given
    assert torch.equal(some.labels[drawn], plain.labels[drawn])


def test_single_slices_serve_2d_images_only() -> None:
    flat = cubes((1, 64, 64), spacing=Spacing.planar())
    volume = cubes((64, 64, 64), spacing=Spacing(1, 1, 1), side=4)
    made = [
        labelled_images(range(6), (2, 16, 16), degree=3, label_maps=maps, label_map_share=1.0)
        for maps in ([flat, volume], [volume])
    ]
    assert torch.equal(made[0].image, made[1].image)
    with pytest.raises(ValueError, match="single slices cannot give degree 3"):
        labelled_images([0], (2, 16, 16), degree=3, label_maps=[flat], label_map_share=1.0)


@pytest.mark.parametrize("degree", range(MAX_DEGREE + 1))
@pytest.mark.parametrize(
    ("shape", "mm"),
    [
        ((256, 256, 256), (1, 1, 1)),
        ((34, 128, 128), (10, 3, 3)),
        ((20, 512, 512), (2, 0.9, 0.9)),
        ((48, 512, 512), (5, 0.6, 0.8)),
        ((30, 40, 40), (1, 1, 1)),
        ((20, 90, 110), (3, 3, 3)),
    ],
)
def test_crops_are_neither_finer_nor_larger_than_the_label_map(
    shape: Size, mm: tuple[float, float, float], degree: int
) -> None:
    own = Spacing(*mm)
    label_map = LabelMap(torch.zeros([n + 2 for n in shape]), own, (0,), "", torch.zeros(1))
    size = crop_size(degree, (4, 4, 4))
    axes = (1, 2) if degree == MAX_DEGREE else (0, 1, 2)
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        spacing = spacing_within(label_map, size, degree=degree, generator=generator)
        assert spacing.degree() == degree
        assert spacing.y == spacing.x
        extent = [shape[axis] * own[axis] for axis in axes]
        box = [size[axis] * spacing[axis] for axis in axes]
        scale = [spacing[axis] / own[axis] for axis in axes]
        finest = spacing.y / max(own.y, own.x)
        assert finest >= 0.499
        if any(mine > whole * 1.001 for mine, whole in zip(box, extent, strict=True)):
            assert finest <= 0.501  # as small as a box may be
        if min(scale) < 0.499:  # coarser slices would make the box larger than the map
            assert max(mine / whole for mine, whole in zip(box, extent, strict=True)) > 0.499


def test_spacing_within_a_large_label_map_varies() -> None:
    label_map = cubes((128, 128, 128), spacing=Spacing(2, 2, 2))
    generator = torch.Generator().manual_seed(0)
    drawn = [
        spacing_within(label_map, (32, 32, 32), degree=0, generator=generator).y for _ in range(40)
    ]
    assert 1.5 <= min(drawn) < 2 < 3 < max(drawn) <= 4
