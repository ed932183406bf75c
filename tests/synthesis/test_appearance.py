"""Laws of appearance: ranges, the parts of an image, and the samples that could divide by zero."""

import pytest
import torch
import torch.nn.functional as F

from spadnet.spacing import Spacing
from spadnet.synthesis.appearance import (
    PUBLISHED,
    Appearance,
    bias_field,
    blur,
    draw_clean,
    render,
    rescale,
)
from spadnet.synthesis.fields import sample_generators
from spadnet.synthesis.geometry import plan_geometry

PERFECT = Appearance(texture=(0, 0), bias=(0, 0), noise=(0, 0), blur=(0, 0), gamma=(1, 1))


def plan(size, spacing=Spacing(1, 1, 1)):
    return plan_geometry(size, spacing=spacing, field_of_view=None)


def clean_of(labels, geometry, *, appearance, background=None, num_labels=4):
    count = len(labels)
    return draw_clean(
        sample_generators(range(count), stream=1),
        labels,
        geometry=geometry,
        num_labels=num_labels,
        background=torch.zeros(count, dtype=torch.bool) if background is None else background,
        appearance=appearance,
    )


def test_without_texture_a_label_has_one_intensity():
    labels = torch.randint(4, (2, 4, 8, 8), dtype=torch.uint8)
    clean = clean_of(labels, plan((4, 8, 8)), appearance=PERFECT)
    for sample, label_map in zip(clean, labels, strict=True):
        values = [sample[label_map == label].unique() for label in range(4)]
        assert all(len(value) == 1 for value in values)
        assert len(torch.cat(values).unique()) == 4


def test_label_that_no_voxel_has_is_no_trouble():
    labels = torch.full((1, 4, 8, 8), 3, dtype=torch.uint8)
    geometry = plan((4, 8, 8))
    clean = clean_of(labels, geometry, appearance=Appearance())
    image = render(
        sample_generators([0], stream=2), clean, geometry=geometry, appearance=Appearance()
    ).image
    assert image.isfinite().all()


def test_constant_image_stays_finite():
    geometry = plan((4, 8, 8))
    image = render(
        sample_generators([0], stream=2),
        torch.zeros(1, 4, 8, 8),
        geometry=geometry,
        appearance=Appearance(),
    ).image
    assert image.isfinite().all()
    assert image.max() <= 1


def test_air_is_nearly_black():
    labels = torch.zeros(3, 2, 8, 8, dtype=torch.uint8)
    air = torch.tensor([True, True, True])
    clean = clean_of(labels, plan((2, 8, 8)), appearance=PERFECT, background=air)
    assert clean.max() <= 0.05


def test_thick_slice_is_the_average_of_thin_ones():
    labels = torch.randint(4, (1, 16, 8, 8), dtype=torch.uint8)
    thin = clean_of(labels, plan((16, 8, 8)), appearance=Appearance())
    thick = clean_of(labels, plan((4, 8, 8), Spacing(4, 1, 1)), appearance=Appearance())
    torch.testing.assert_close(thick, thin.unflatten(1, (4, 4)).mean(2))


def test_perfect_scanner_only_stretches_the_range():
    clean = torch.rand(2, 4, 8, 8) * 0.5 + 0.2
    rendering = render(
        sample_generators([0, 1], stream=2), clean, geometry=plan((4, 8, 8)), appearance=PERFECT
    )
    low = clean.amin((1, 2, 3), keepdim=True)
    high = clean.amax((1, 2, 3), keepdim=True)
    expected = (clean - low) / (high - low)
    torch.testing.assert_close(rendering.image, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(rendering.bias, torch.ones_like(clean))


@pytest.mark.parametrize("spacing", [Spacing(1, 1, 1), Spacing(4, 1, 1), Spacing.planar()])
def test_bias_field_is_smooth_and_around_one(spacing):
    depth = 1 if spacing.is_planar else 8
    bias = bias_field(
        sample_generators(range(8), stream=2),
        geometry=plan((depth, 64, 64), spacing),
        appearance=Appearance(bias=(0.1, 0.1)),
        device="cpu",
    )
    assert bias.shape == (8, depth, 64, 64)
    assert 0.05 < bias.log().std() < 0.15
    assert bias.diff(dim=3).abs().max() < 0.08


@pytest.mark.parametrize("block", [1, 300, 1 << 20])
def test_blur_is_a_gaussian_convolution(block, monkeypatch):
    monkeypatch.setattr("spadnet.synthesis.geometry.BLOCK", block)
    image = torch.rand(2, 6, 12, 12)
    sigma = torch.tensor([0.7, 0.9])
    ours = blur(image, sigma=sigma, geometry=plan((6, 12, 12)))
    for sample, result, width in zip(image, ours, sigma, strict=True):
        taps = torch.exp(-0.5 * (torch.arange(-2, 3) / width) ** 2)
        kernel = torch.einsum("i,j,k->ijk", taps, taps, taps)
        weight = F.conv3d(torch.ones_like(sample)[None, None], kernel[None, None], padding=2)
        expected = F.conv3d(sample[None, None], kernel[None, None], padding=2) / weight
        torch.testing.assert_close(result, expected[0, 0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(1, 1, 1), (1, 2, 3), (2, 3, 4), (3, 5, 1)])
def test_blur_keeps_a_constant_in_the_smallest_volumes(size):
    image = torch.full((1, *size), 0.3)
    blurred = blur(image, sigma=torch.tensor([1.0]), geometry=plan(size))
    torch.testing.assert_close(blurred, torch.full((1, *size), 0.3))


def test_blur_leaves_thick_slices_apart():
    image = torch.zeros(1, 4, 8, 8)
    image[:, 1] = 1
    blurred = blur(image, sigma=torch.tensor([1.0]), geometry=plan((4, 8, 8), Spacing(8, 1, 1)))
    torch.testing.assert_close(blurred, torch.zeros(1, 4, 8, 8).index_fill(1, torch.tensor(1), 1))


def test_rescale_spans_the_unit_range_for_every_sample():
    image = torch.randn(3, 4, 8, 8) * torch.tensor([1.0, 100.0, 1e-3]).view(3, 1, 1, 1)
    scaled = rescale(image, gamma=torch.tensor([0.5, 1.0, 1.5]))
    torch.testing.assert_close(scaled.amax((1, 2, 3)), torch.ones(3))
    assert scaled.amin() >= 0
    assert scaled.amin((1, 2, 3)).max() < 1e-4


def test_severity_orders_the_ranges():
    mild, severe = Appearance.at(0.1), Appearance.at(0.9)
    for name in ("bias", "noise", "blur"):
        assert getattr(mild, name)[1] < getattr(severe, name)[1]
    assert PUBLISHED.noise == (0.05, 0.4)
    with pytest.raises(ValueError, match=r"1\.5"):
        Appearance.at(1.5)
