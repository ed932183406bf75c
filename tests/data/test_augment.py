"""Intensity augmentation: bounded, seeded, independent of how a batch is split."""

import pytest
import torch

from spadnet.data.augment import (
    IntensityAugment,
    IntensityDraw,
    apply_intensity,
    augment_intensity,
    draw_intensity,
)

ALWAYS = IntensityAugment(scale_prob=1.0, contrast_prob=1.0, gamma_prob=1.0)


def draw_of(
    *, scale: float = 1.0, contrast: float = 1.0, gamma: float = 1.0, inverted: bool = False
) -> IntensityDraw:
    values = (torch.tensor([value]) for value in (scale, contrast, gamma))
    return IntensityDraw(*values, torch.tensor([inverted]))


def test_stays_between_0_and_1() -> None:
    image = torch.rand(64, 1, 2, 8, 8)
    changed = augment_intensity(image, generator=torch.Generator().manual_seed(0), augment=ALWAYS)
    assert changed.min() >= 0
    assert changed.max() <= 1
    assert not torch.equal(changed, image)


def test_each_change_is_what_it_says() -> None:
    image = 0.2 + 0.5 * torch.rand(1, 1, 2, 8, 8)
    torch.testing.assert_close(apply_intensity(image, draw_of(scale=1.2)), image * 1.2)
    torch.testing.assert_close(apply_intensity(image, draw_of(gamma=1.5)), image**1.5)
    torch.testing.assert_close(
        apply_intensity(image, draw_of(gamma=1.5, inverted=True)), 1 - (1 - image) ** 1.5
    )
    contrast = apply_intensity(image, draw_of(contrast=0.75))
    torch.testing.assert_close(contrast.mean(), image.mean())
    torch.testing.assert_close(contrast.std(), image.std() * 0.75)
    assert torch.equal(apply_intensity(image, draw_of()), image)


def test_chances_are_as_said() -> None:
    draw = draw_intensity(4000, generator=torch.Generator().manual_seed(0))
    shares = [(value != 1).float().mean().item() for value in draw[:3]]
    assert shares == pytest.approx([0.15, 0.15, 0.3], abs=0.03)
    assert draw.inverted.float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert draw.gamma.min() >= 0.7
    assert draw.gamma.max() <= 1.5


def test_parts_of_a_batch_change_as_in_the_whole() -> None:
    image = torch.rand(6, 3, 1, 8, 8)
    draw = draw_intensity(6, generator=torch.Generator().manual_seed(0), augment=ALWAYS)
    whole = apply_intensity(image, draw)
    parts = [apply_intensity(image[i : i + 2], draw.rows(i, i + 2)) for i in (0, 2, 4)]
    assert torch.equal(torch.cat(parts), whole)


def test_same_seed_same_change_and_input_is_left_alone() -> None:
    image = torch.rand(4, 1, 1, 8, 8)
    before = image.clone()
    first, second = (
        augment_intensity(image, generator=torch.Generator().manual_seed(3), augment=ALWAYS)
        for _ in range(2)
    )
    assert torch.equal(first, second)
    assert torch.equal(image, before)
