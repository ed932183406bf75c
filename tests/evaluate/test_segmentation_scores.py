"""Masks are scored class by class; a volume is segmented in windows of its degree."""

import math

import pytest
import torch
from torch import Tensor, nn

from spadnet.evaluate.prediction import build_predictor
from spadnet.evaluate.segmentation_scores import (
    WINDOW_WAYS,
    WindowRule,
    class_probabilities,
    dice_of,
    segment_thin,
    segment_view,
    surface_scores,
    window_rule,
)
from spadnet.models.spad_unet import SpadUNet
from spadnet.models.turned import run_along
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


class FirstHalf(Threshold):
    """Class 1 in the first half of what it is given along z; knows positions."""

    def forward(self, x: Tensor, degree: int) -> list[Tensor]:
        ramp = torch.linspace(1, 0, x.shape[2]).view(-1, 1, 1) + 0 * x
        return super().forward(ramp, degree)


def test_networks_that_know_positions_see_small_images_as_in_training() -> None:
    model = FirstHalf()
    rule = WindowRule((16, 16, 16), 8)
    image = torch.rand(1, 7, 16, 20)
    assert segment_view(model, image, 0, rule)[:, 0, 0].tolist() == [1] * 4 + [0] * 3
    assert model.seen[0] == (0, 8, 16, 16)
    model.seen.clear()
    found = segment_view(model, image, 0, rule._replace(centred=True))
    assert found.shape == (7, 16, 20)
    assert found[:, 0, 0].tolist() == [1] * 3 + [0] * 4  # 5 slices before, 4 behind
    assert set(model.seen) == {(0, 16, 16, 16)}
    chances = class_probabilities(model, image, 0, rule._replace(centred=True))
    assert torch.equal(chances.argmax(0), found.long())


@torch.no_grad()
def test_windows_on_thin_slices_begin_with_thick_ones() -> None:
    """Windows of one thick slice give what the network gives of each alone."""
    torch.manual_seed(0)
    unet = SpadUNet(in_chans=1, num_classes=2, features=(4, 8)).eval()
    image = torch.rand(1, 4, 16, 16)
    rule = WindowRule((4, 16, 16), unet.stride, thin_logits=True, follows_body=True)
    alone = [unet(image[None, :, k : k + 1], 2, out_degree=0)[0].argmax(0) for k in range(4)]
    assert torch.equal(segment_thin(unet, image, 2, rule), torch.cat(alone).to(torch.uint8))


def test_models_that_do_not_follow_the_body_mirror_axes_of_the_image() -> None:
    """As they did in their training."""
    model = FirstHalf()
    image = torch.rand(1, 16, 16, 16)
    rule = WindowRule((16, 16, 16), 8, flips=(0,))  # along z nothing but a tie is left
    for follows, axis, is_gone in ((False, 1, True), (True, 1, False), (True, 0, True)):
        mask = segment_view(model, image, 0, rule._replace(follows_body=follows), axis=axis)
        assert (mask.sum() == 0) == is_gone


@torch.no_grad()
def test_thick_masks_are_the_average_of_thin_ones() -> None:
    torch.manual_seed(0)
    unet = SpadUNet(in_chans=1, num_classes=2, features=(4, 8)).eval()
    image = torch.rand(1, 4, 16, 16)
    rule = WindowRule((16, 16, 16), unet.stride, thin_logits=True, follows_body=True)
    chances = unet(image[None], 2, out_degree=0)[0].softmax(0)
    assert torch.equal(segment_thin(unet, image, 2, rule), chances.argmax(0).to(torch.uint8))
    thick = chances.unflatten(1, (4, 4)).mean(2)
    assert torch.equal(segment_view(unet, image, 2, rule), thick.argmax(0).to(torch.uint8))
    turned = run_along(unet, image[None], 2, axis=1, out_degree=0)[0].argmax(0)
    found = segment_thin(unet, image, 2, rule, axis=1)
    assert torch.equal(found, turned.to(torch.uint8))
    assert not torch.equal(found, segment_thin(unet, image, 2, rule))


@pytest.mark.parametrize(("degree", "depth"), [(0, 16), (2, 4), (5, 1)])
def test_windows_follow_the_degree(degree: int, depth: int) -> None:
    model = Threshold()
    image = torch.rand(1, 1 if degree == 5 else 21, 40, 30)
    rule = WindowRule(crop=(16, 32, 32), stride=16, flips=(0, 2))
    mask = segment_view(model, image, degree, rule)
    assert torch.equal(mask, (image[0] > 0.5).to(torch.uint8))
    assert set(model.seen) == {(degree, depth, 32, 32)}


def test_only_a_unet_trained_on_averaged_slices_decodes_thin_ones() -> None:
    unet = SpadUNet(in_chans=1, num_classes=2, features=(4, 8))
    ways = [
        window_rule(model, (8, 8, 8), stride=2, overlap=0.5, flips=[2], thick_slices=averaged)
        for model in (unet, Threshold())
        for averaged in (True, False)
    ]
    assert [way.thin_logits for way in ways] == [True, False, False, False]
    assert all(way.follows_body and not way.centred for way in ways)
    task = {
        "kind": "segmentation",
        "classes": ["background", "blob"],
        "preparation": {},
        "crop": [8, 8, 8],
        "overlap": 0.5,
        "flips": [2],
        "value_mean": None,
        "value_std": None,
    }
    before = build_predictor(unet, {"task": task}, stride=2).window
    assert before == WindowRule((8, 8, 8), 2, 0.5, (2,))  # models saved before they were told
    kept = {way: getattr(ways[0], way) for way in WINDOW_WAYS}
    assert build_predictor(unet, {"task": task | kept}, stride=2).window == ways[0]
