"""Thick slices on the thin grid, and worse images."""

import pytest
import torch
from torch import Tensor, nn

from spadnet.data.task_images import TaskImage
from spadnet.data.warp import turn_to_z
from spadnet.evaluate.degrade import KINDS, check_kinds, coarse, degrade
from spadnet.evaluate.segmentation_scores import WindowRule
from spadnet.evaluate.thick_slices import (
    RepeatedSlices,
    Way,
    back_on_thin,
    thick_dice,
    thick_from_thin,
    turned_back,
)
from spadnet.models.spad_unet import SpadUNet
from spadnet.spacing import Spacing

SIZE = (6, 8, 10)
MM = Spacing(1.0, 1.0, 1.0)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_turning_is_undone(axis: int) -> None:
    x = torch.rand(1, *SIZE)
    turned, _ = thick_from_thin(x, MM, axis=axis, slab=1)
    assert torch.equal(turned_back(turned, axis=axis, size=SIZE), x)
    assert torch.equal(turned_back(turned[0], axis=axis, size=SIZE), x[0])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_repeated_slices_have_the_means_of_thin_ones(axis: int) -> None:
    x = torch.rand(1, 8, 8, 8)
    thick, spacing = thick_from_thin(x, MM, axis=axis, slab=4)
    assert spacing.degree() == 2
    back = back_on_thin(thick, slab=4, axis=axis, size=(8, 8, 8), way="repeat")
    for start in (0, 4):
        part = x.narrow(1 + axis, start, 4).mean(1 + axis, keepdim=True)
        assert torch.allclose(back.narrow(1 + axis, start, 4), part.expand(-1, *_group(axis)))


def _group(axis: int) -> list[int]:
    return [4 if dim == axis else 8 for dim in range(3)]


def test_interpolation_keeps_a_ramp() -> None:
    x = torch.arange(16.0).view(1, 1, 1, 16).expand(1, 4, 4, 16)
    thick, _ = thick_from_thin(x, MM, axis=2, slab=4)
    back = back_on_thin(thick, slab=4, axis=2, size=(4, 4, 16), way="interpolate")
    assert torch.allclose(back[..., 2:-2], x[..., 2:-2], atol=1e-4)


class _Threshold(nn.Module):
    """Calls bright voxels class 1; notes the degrees it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.in_chans = 1
        self.weight = nn.Parameter(torch.tensor(100.0))
        self.degrees: list[int] = []

    def forward(self, x: Tensor, degree: int) -> Tensor:
        self.degrees.append(degree)
        return torch.cat([0 * x, self.weight * (x - 0.5)], 1)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_every_way_is_scored_on_the_thin_grid(axis: int) -> None:
    label = torch.zeros(8, 16, 16, dtype=torch.uint8)
    label[:4, 4:8, 8:12] = 1  # whole slabs of four along every axis
    case = TaskImage("a", label[None].half(), label, 0, MM)
    rule = WindowRule((16, 16, 16), 4)
    model = _Threshold()
    for slab, way, degree in ((1, "degree", 0), (4, "degree", 2), (4, "repeat", 0)):
        model.degrees.clear()
        found = thick_dice(
            model,
            case,
            axis=axis,
            slab=slab,
            way=way,  # type: ignore[arg-type]
            rule=rule,
            num_classes=2,
        )
        assert found == [1.0]
        assert set(model.degrees) == {degree}


class _SumAlong(nn.Module):
    """Calls the first half along ``dim`` class 1: a mirror along it, and no other, undoes that."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.in_chans = 1
        self.dim = dim
        self.weight = nn.Parameter(torch.tensor(9.0))

    def forward(self, x: Tensor, degree: int) -> Tensor:
        size = [-1 if dim == self.dim else 1 for dim in range(x.ndim)]
        ramp = torch.linspace(1, -1, x.shape[self.dim]).view(size)
        return torch.cat([0 * x, self.weight * ramp + 0 * x], 1)


@pytest.mark.parametrize(("axis", "dim"), [(0, 4), (1, 4), (2, 2)])
def test_mirrors_stay_with_their_axis_when_it_is_turned(axis: int, dim: int) -> None:
    size = (16, 16, 16)
    case = TaskImage("a", torch.rand(1, *size).half(), torch.zeros(size, dtype=torch.uint8), 0, MM)
    rule = WindowRule((16, 16, 16), 4, flips=(2,), follows_body=True)
    found = {}
    for seen in (2, 3, 4):
        model, plain = _SumAlong(seen), rule._replace(flips=())
        args = {"axis": axis, "slab": 4, "way": "degree", "num_classes": 2}
        found[seen] = [
            thick_dice(model, case, rule=r, **args)  # type: ignore[arg-type]
            for r in (plain, rule)
        ]
    # Averaged with its mirror along the network's own axis, the ramp is gone: nothing is class 1.
    assert {seen: two[1] == [1.0] for seen, two in found.items()} == {
        seen: seen == dim for seen in found
    }


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize(
    ("slab", "spacing", "least"), [(3, MM, 1.0), (4, Spacing(0.5, 1, 1), 1.0), (32, MM, 0.5)]
)
def test_slabs_that_are_no_power_of_two_pixels_are_scored_too(
    axis: int, slab: int, spacing: Spacing, least: float
) -> None:
    """A U-Net that finds bright voxels finds them in their place, or between flat slices near."""
    unet = _bright_voxels()
    size = [12, 12, 12]
    size[axis] = 3 * slab
    label = torch.zeros(size, dtype=torch.uint8)
    label[2:8, 2:8, 2:8] = 1
    label = label.amax(axis, keepdim=True).repeat_interleave(3 * slab, axis)
    for start in (0, 2 * slab):
        label.narrow(axis, start, slab).zero_()
    case = TaskImage("a", label.float()[None].half(), label, 0, spacing)
    rule = WindowRule((96, 96, 96), 2, thin_logits=True, follows_body=True)
    found = thick_dice(unet, case, axis=axis, slab=slab, way="degree", rule=rule, num_classes=2)
    assert found[0] >= least


@torch.no_grad()
def _bright_voxels() -> SpadUNet:
    """A U-Net whose finest level passes on what lies above the mean, and no other level does."""
    unet = SpadUNet(in_chans=1, num_classes=2, features=(1, 1), num_convs=1, num_convs_decoder=1)
    for weight in unet.parameters():
        if weight.ndim == 5:
            weight.zero_()
    weights = dict(unet.named_parameters())
    weights["encoder.stages.0.blocks.0.conv.weight"][0, 0, 1, 1, 1] = 1
    weights["decoder.stages.0.blocks.0.conv.weight"][0, 1, 1, 1, 1] = 1  # behind the upsampled
    weights["decoder.heads.0.weight"][1] = 1
    return unet.eval()


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize(("way", "slab"), [("degree", 1), ("degree", 2), ("repeat", 2)])
@pytest.mark.parametrize("thin", [True, False])
def test_a_case_scores_as_it_would_lying_along_z(
    axis: int, way: Way, slab: int, thin: bool
) -> None:
    torch.manual_seed(0)
    unet = SpadUNet(in_chans=1, num_classes=2, features=(2, 4)).eval()
    label = (torch.rand(4, 8, 12) > 0.5).to(torch.uint8)
    case = TaskImage("a", torch.rand(1, 4, 8, 12).half(), label, 0, MM)
    image, turned, _ = turn_to_z(case.image, label, MM, axis=axis)
    assert turned is not None
    lying = case._replace(image=image, target=turned, axis=axis)
    rule = WindowRule((12, 12, 12), 2, thin_logits=thin, follows_body=True)
    for along in range(3):
        found, want = (
            thick_dice(unet, c, axis=along, slab=slab, way=way, rule=rule, num_classes=2)
            for c in (lying, case)
        )
        assert found == pytest.approx(want)
        assert 0 < want[0] < 1


def test_a_share_of_training_cases_has_repeated_slices() -> None:
    label = torch.zeros(SIZE, dtype=torch.uint8)
    images = [TaskImage(f"c{i}", torch.rand(1, *SIZE).half(), label, 0, MM) for i in range(3)]
    found = RepeatedSlices(images, share=0.2)
    assert len(found) == 3 * 30
    same = [torch.equal(case.image, images[i % 3].image) for i, case in enumerate(found)]
    assert sum(same) == 3 * 24
    assert all(case.image.shape == (1, *SIZE) and case.degree == 0 for case in found)
    with pytest.raises(ValueError, match="must lie in"):
        RepeatedSlices(images, share=1.0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("size", "spacing"), [((1, 32, 32), Spacing.planar()), ((40, 16, 14), MM)])
def test_degradations_grow_and_depend_on_the_name(
    kind: str, size: tuple[int, int, int], spacing: Spacing
) -> None:
    image = 0.2 + 0.6 * torch.rand(1, *size)
    changes = []
    for strength in (0.0, 0.3, 1.0):
        found = degrade(image, spacing, key="a", kinds=[kind], strength=strength)
        again = degrade(image, spacing, key="a", kinds=[kind], strength=strength)
        assert torch.equal(found, again)
        assert found.shape == image.shape
        assert found.min() >= 0
        assert found.max() <= 1
        changes.append(float((found - image).abs().mean()))
    assert changes[0] == pytest.approx(0, abs=1e-6)
    assert changes[0] < changes[1] < changes[2]


def test_kinds_are_drawn_and_unknown_ones_refused() -> None:
    image = torch.rand(1, 1, 16, 16)
    drawn = set()
    for i in range(20):
        found = degrade(image, Spacing.planar(), key=str(i), kinds=KINDS, strength=0.5)
        for kind in KINDS:
            alone = degrade(image, Spacing.planar(), key=str(i), kinds=[kind], strength=0.5)
            if torch.equal(found, alone):
                drawn.add(kind)
    assert drawn == set(KINDS)
    with pytest.raises(ValueError, match="did you mean 'blur'"):
        check_kinds(["blurr"])
    assert torch.equal(coarse(image, dim=2, share=0.0), image)
