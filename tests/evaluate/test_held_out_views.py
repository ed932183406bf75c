"""Views of held-out images are balanced over degrees and show what the images hold."""

import logging

import pytest
import torch

from spadnet.data.volume import Volume
from spadnet.evaluate.held_out_views import held_out_views
from spadnet.spacing import Spacing, required_multiple


def volume(spacing: Spacing, *size: int, key: str = "a") -> Volume:
    return Volume(torch.rand(1, *size), spacing, key, 1.0, "set", "MR")


def test_each_degree_has_its_own_images_first() -> None:
    images = [
        volume(Spacing(1, 1, 1), 40, 48, 48, key="thin"),
        volume(Spacing(4, 1, 1), 16, 48, 48, key="thick"),
        volume(Spacing.planar(), 1, 64, 64, key="flat"),
    ]
    views = held_out_views(images, degrees=(0, 2, 3, 5), per_degree=2, tokens=(4, 8, 8))
    assert [(view.degree, view.name) for view in views] == [
        (0, "thin"),
        (2, "thick"),
        (2, "thin, means of 4 slices"),
        (3, "thick, means of 2 slices"),
        (3, "thin, means of 8 slices"),
        (5, "flat"),
        (5, "thick, middle slice"),
    ]
    for view in views:
        assert view.spacing.degree() == view.degree
        steps = required_multiple(view.degree)
        assert all(n % s == 0 for n, s in zip(view.image.shape[2:], steps, strict=True))
        assert view.modality == "MR"


def test_the_middle_is_cut_out_and_slices_are_averaged() -> None:
    image = volume(Spacing(1, 1, 1), 20, 40, 40)
    (flat,) = held_out_views([image], degrees=(5,), per_degree=1, tokens=(4, 1, 2))
    assert torch.equal(flat.image[0, :, 0], image.image[:, 9, 12:28, 4:36])
    (thick,) = held_out_views([image], degrees=(3,), per_degree=1, tokens=(1, 1, 1))
    means = image.image[:, 2:18].unflatten(1, (2, 8)).mean(2)
    assert torch.allclose(thick.image[0], means[..., 12:28, 12:28])


def test_bytes_become_intensities() -> None:
    image = volume(Spacing.planar(), 1, 16, 16)
    stored = image._replace(image=(image.image * 255).to(torch.uint8))
    (view,) = held_out_views([stored], degrees=(5,), per_degree=1, tokens=(1, 1, 1))
    assert torch.allclose(view.image[0], image.image, atol=1 / 255)


def test_a_degree_that_nothing_can_show_is_said(caplog: pytest.LogCaptureFixture) -> None:
    images = [volume(Spacing(8, 1, 1), 4, 32, 32)]
    with caplog.at_level(logging.WARNING):
        assert held_out_views(images, degrees=(0,), per_degree=1, tokens=(1, 1, 1)) == []
    assert "no held-out image can show degree 0" in caplog.text
