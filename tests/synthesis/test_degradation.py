"""Laws of thick slices, corrupted views and mix-up."""

import pytest
import torch

from spadnet.spacing import Spacing
from spadnet.synthesis import corrupted_views, mix_up, thick_labels, thick_slices


def smooth_image(count=2):
    ramp = torch.linspace(0, 6, 32)
    image = (ramp[:, None].sin() * ramp.cos() + 1) / 2
    return image.expand(count, 1, 4, 32, 32).clone()


def test_thick_slices_average_and_say_their_spacing():
    volume = torch.rand(2, 1, 8, 4, 4)
    thick, spacing = thick_slices(volume, spacing=Spacing(1.5, 1, 1), slabs=4)
    assert spacing == Spacing(6.0, 1, 1)
    torch.testing.assert_close(thick[:, :, 1], volume[:, :, 4:].mean(2))
    assert thick_labels(torch.arange(8).view(1, 8, 1, 1), slabs=4).flatten().tolist() == [2, 6]


def test_thickening_twice_is_thickening_once_by_the_product():
    volume, spacing = torch.rand(1, 1, 8, 4, 4), Spacing(1, 1, 1)
    half, between = thick_slices(volume, spacing=spacing, slabs=2)
    twice, step = thick_slices(half, spacing=between, slabs=2)
    once, whole = thick_slices(volume, spacing=spacing, slabs=4)
    torch.testing.assert_close(twice, once)
    assert step == whole


@pytest.mark.parametrize("slabs", [0, 3])
def test_slabs_must_divide_the_slices(slabs):
    with pytest.raises(ValueError, match="slabs"):
        thick_slices(torch.rand(1, 8, 4, 4), spacing=Spacing(1, 1, 1), slabs=slabs)


def test_severer_views_are_further_from_the_image():
    image = smooth_image(8)
    views = corrupted_views(range(8), image, spacing=Spacing(2, 1, 1), severities=(0.0, 0.3, 1.0))
    errors = [(view - image).abs().mean() for view in views]
    assert errors[0] < 0.02
    assert errors[0] < errors[1] < errors[2]
    for view in views:
        assert view.shape == image.shape
        assert view.min() >= 0
        assert view.max() <= 1


def test_a_view_depends_on_its_own_seed_only():
    image = smooth_image(3)
    whole = corrupted_views([4, 5, 6], image, spacing=Spacing(2, 1, 1), severities=(0.5,))[0]
    single = corrupted_views([5], image[1:2], spacing=Spacing(2, 1, 1), severities=(0.5,))[0]
    torch.testing.assert_close(whole[1:2], single, atol=1e-5, rtol=1e-5)


def test_views_of_a_planar_image():
    image = torch.rand(1, 1, 1, 16, 16)
    views = corrupted_views([0], image, spacing=Spacing.planar(), severities=(0.2, 0.8))
    assert [view.shape for view in views] == [image.shape] * 2


def test_mix_up_lies_between_both():
    real, synthetic = torch.rand(2, 3, 1, 2, 8, 8).unbind(0)
    mixed, share = mix_up(range(3), real, synthetic, between=(0.2, 0.8))
    assert share.min() >= 0.2
    assert share.max() <= 0.8
    weight = share.view(-1, 1, 1, 1, 1)
    torch.testing.assert_close(mixed, weight * real + (1 - weight) * synthetic)


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match="image"):
        corrupted_views(
            range(2), torch.rand(1, 1, 2, 4, 4), spacing=Spacing(1, 1, 1), severities=(0.5,)
        )
    with pytest.raises(ValueError, match="one shape"):
        mix_up(range(1), torch.rand(1, 1, 2, 4, 4), torch.rand(1, 1, 2, 4, 5))
