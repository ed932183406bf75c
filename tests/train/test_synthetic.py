"""Synthetic images have the wanted degree and depend on their own seed only."""

import pytest
import torch

from spadnet.data.crop_plan import NO_AUGMENT, Size
from spadnet.data.datasets import StepDataset
from spadnet.data.volume import Volume
from spadnet.spacing import MAX_DEGREE, Spacing, required_multiple
from spadnet.synthesis.dataset import NUM_LABELS
from spadnet.train.synthetic import labelled_images, synthetic_images


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
