"""Masks are scored class by class; a volume is segmented in windows of its degree."""

import math

import pytest
import torch
from torch import Tensor, nn

from spadnet.evaluate.segmentation_scores import (
    WindowRule,
    dice_of,
    segment_view,
    surface_scores,
)
from spadnet.spacing import Spacing


def test_dice_by_definition() -> None:
    label = torch.zeros(1, 4, 4, dtype=torch.uint8)
    label[0, :2] = 1
    mask = torch.zeros_like(label)
    mask[0, 1:3] = 1
    assert dice_of(mask, label, 3) == pytest.approx([2 * 4 / 16, 1.0])  # no voxel of class 2
    label[0, 3] = 2
    assert dice_of(mask, label, 3) == pytest.approx([0.5, 0.0])
    label[0, 3], mask[0, 3] = 0, 2
    assert dice_of(mask, label, 3) == pytest.approx([0.5, 0.0])  # the mask alone has class 2


def test_surfaces_are_measured_in_millimetres() -> None:
    pytest.importorskip("scipy")
    label = torch.zeros(12, 20, 20, dtype=torch.uint8)
    label[2:8, 4:12, 4:12] = 1
    nsd, hd95 = surface_scores(label.roll(2, 0), label, Spacing(3.0, 1.0, 1.0), 3, 1.0)
    assert hd95[0] == pytest.approx(6.0)
    assert 0 < nsd[0] < 1
    assert math.isnan(nsd[1])  # no voxel of class 2
    assert math.isnan(hd95[1])
    assert surface_scores(label[5:6], label[5:6], Spacing.planar(), 2, 1.0) == ([1.0], [0.0])


class Threshold(nn.Module):
    """Class 1 where the image is bright; notes what it was given."""

    in_chans = 1

    def __init__(self) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(1))
        self.seen: list[tuple[int, ...]] = []

    def forward(self, x: Tensor, degree: int) -> list[Tensor]:
        self.seen.append((degree, *x.shape[2:]))
        return [torch.cat([0.5 - x, x - 0.5], 1)]


@pytest.mark.parametrize(("degree", "depth"), [(0, 16), (2, 4), (5, 1)])
def test_windows_follow_the_degree(degree: int, depth: int) -> None:
    model = Threshold()
    image = torch.rand(1, 1 if degree == 5 else 21, 40, 30)
    rule = WindowRule(crop=(16, 32, 32), stride=16, flips=(0, 2))
    mask = segment_view(model, image, degree, rule)
    assert torch.equal(mask, (image[0] > 0.5).to(torch.uint8))
    assert set(model.seen) == {(degree, depth, 32, 32)}
