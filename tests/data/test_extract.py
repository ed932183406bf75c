"""Cutting crops: equal to slicing, averaging, turning and reading off a linear field."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from spadnet.data.crop_plan import CropAugment, CropPlan, draw_crop_plan
from spadnet.data.extract import Box, extract
from spadnet.spacing import Spacing

PLAIN = CropPlan(
    image=0,
    degree=0,
    size=(16, 16, 16),
    centre=(15.5, 17.5, 19.5),
    scale=(1.0, 1.0, 1.0),
    slab=1,
    flips=(False, False, False),
    angles=(0.0, 0.0, 0.0),
    spacing=Spacing(1.0, 1.0, 1.0),
)


@pytest.fixture
def volume() -> Tensor:
    return torch.rand(2, 32, 36, 40)


def field(shape: tuple[int, int, int]) -> Tensor:
    """The voxel's own coordinates / 64, [3, D, H, W]: what linear interpolation keeps exactly."""
    axes = [torch.arange(size, dtype=torch.float32) / 64 for size in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def test_identity_is_a_slice(volume: Tensor) -> None:
    expected = volume[:, 8:24, 10:26, 12:28]
    assert torch.equal(extract(volume, PLAIN), expected)
    assert torch.equal(extract(volume.half(), PLAIN), expected.half().float())


def test_uint8_stands_for_255ths(volume: Tensor) -> None:
    stored = (volume * 255).round().to(torch.uint8)
    torch.testing.assert_close(extract(stored, PLAIN), extract(volume, PLAIN), atol=0.002, rtol=0)


@pytest.mark.parametrize("axis", range(3))
def test_flip_is_a_flip(volume: Tensor, axis: int) -> None:
    flips = [False, False, False]
    flips[axis] = True
    plan = PLAIN._replace(flips=tuple(flips))
    assert torch.equal(extract(volume, plan), extract(volume, PLAIN).flip(1 + axis))


def test_thick_slices_are_averages(volume: Tensor) -> None:
    plan = PLAIN._replace(size=(4, 16, 16), slab=4, degree=2, spacing=Spacing(4.0, 1.0, 1.0))
    expected = volume[:, 8:24, 10:26, 12:28].unflatten(1, (4, 4)).mean(2)
    torch.testing.assert_close(extract(volume, plan), expected)


def test_quarter_turn_is_rot90(volume: Tensor) -> None:
    plan = PLAIN._replace(centre=(15.5, 17.5, 17.5), angles=(math.pi / 2, 0.0, 0.0))
    straight = extract(volume, plan._replace(angles=(0.0, 0.0, 0.0)))
    turned = extract(volume, plan)
    torch.testing.assert_close(turned, straight.rot90(-1, (2, 3)), atol=1e-5, rtol=0)


def test_half_turn_about_y_mirrors_z_and_x(volume: Tensor) -> None:
    plan = PLAIN._replace(angles=(0.0, math.pi, 0.0))
    expected = extract(volume, PLAIN).flip(1, 3)
    torch.testing.assert_close(extract(volume, plan), expected, atol=1e-4, rtol=0)


def test_scale_two_averages_pairs() -> None:
    volume = torch.rand(1, 8, 64, 64)
    plan = PLAIN._replace(size=(8, 16, 16), centre=(3.5, 15.5, 15.5), scale=(1.0, 2.0, 2.0))
    expected = torch.nn.functional.avg_pool2d(volume[:, :, :32, :32], 2)
    torch.testing.assert_close(extract(volume, plan), expected)


@pytest.mark.parametrize("seed", range(12))
def test_crop_shows_the_places_that_its_plan_says(seed: int) -> None:
    shape, spacing = (60, 90, 100), Spacing(1.2, 1.0, 1.0)
    rng = np.random.default_rng(seed)
    plan = draw_crop_plan(rng, shape, spacing, tokens=(2, 2, 2))
    crop = extract(field(shape), plan) * 64
    centre = (torch.tensor(plan.centre)).float()
    inner = [math.floor((size - 1) / 2) for size in plan.size]
    middle = crop[:, inner[0] :, inner[1] :, inner[2] :][:, :2, :2, :2].mean(dim=(1, 2, 3))
    if plan.size[0] > 1:
        torch.testing.assert_close(middle, centre, atol=1e-2, rtol=0)
    # Neighbours along x are scale voxels apart, in whatever direction.
    step = crop[..., 1:] - crop[..., :-1]
    inside = (crop > 1).all(dim=0) & (crop < torch.tensor(shape).view(3, 1, 1, 1) - 2).all(dim=0)
    lengths = (step * torch.tensor(spacing).view(3, 1, 1, 1)).norm(dim=0)[inside[..., 1:]]
    if plan.slab == 1:
        expected = torch.full_like(lengths, plan.spacing.x)
        torch.testing.assert_close(lengths, expected, atol=2e-2, rtol=0)


def reference(volume: Tensor, plan: CropPlan) -> np.ndarray:
    """The definition in float64: every voxel of the crop by itself, from its eight neighbours."""
    thin = np.array(plan.spacing) / np.array(plan.scale)
    thin[0] = 1.0 if plan.spacing.is_planar else thin[0] / plan.slab
    turn = np.eye(3)
    for angle, first, second in zip(plan.angles, (1, 2, 0), (2, 0, 1), strict=True):
        about = np.eye(3)
        about[first, first] = about[second, second] = np.cos(angle)
        about[first, second], about[second, first] = -np.sin(angle), np.sin(angle)
        turn = turn @ about
    size = (plan.size[0] * plan.slab, *plan.size[1:])
    axes = [np.arange(n) - (n - 1) / 2 for n in size]
    axes = [-at if flip else at for at, flip in zip(axes, plan.flips, strict=True)]
    voxel = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    at = ((voxel * plan.scale * thin) @ turn.T) / thin + plan.centre
    whole = np.floor(at).astype(int)
    values, total = volume.double().numpy(), np.zeros(size)
    for corner in np.ndindex(2, 2, 2):
        near = [np.clip(whole[..., a] + corner[a], 0, values.shape[1 + a] - 1) for a in range(3)]
        weight = np.abs(1 - np.array(corner) - (at - whole)).prod(axis=-1)
        total = total + values[:, near[0], near[1], near[2]] * weight
    return np.asarray(total.reshape(-1, plan.size[0], plan.slab, *plan.size[1:]).mean(axis=2))


@pytest.mark.parametrize(
    ("shape", "spacing"),
    [
        ((40, 60, 70), Spacing(1.2, 1.0, 1.0)),
        ((30, 40, 50), Spacing(2.0, 1.0, 1.1)),
        ((20, 80, 90), Spacing(5.0, 0.8, 0.8)),
        ((1, 90, 70), Spacing.planar()),
    ],
)
def test_every_voxel_is_what_the_plan_defines(
    shape: tuple[int, int, int], spacing: Spacing
) -> None:
    volume, kinds = torch.rand(2, *shape), set()
    for seed in range(14):
        rng = np.random.default_rng(seed)
        augment = CropAugment(rotation_prob=0.6)
        plan = draw_crop_plan(rng, shape, spacing, tokens=(2, 2, 3), augment=augment)
        kinds.add((plan.angles[0] != 0, plan.angles[1] != 0))
        crop = extract(volume, plan)
        np.testing.assert_allclose(crop.numpy(), reference(volume, plan), rtol=0, atol=5e-5)
    assert len(kinds) > 1


def test_crops_far_outside_repeat_the_edge(volume: Tensor) -> None:
    for shift in (-60.0, 60.0):
        plan = PLAIN._replace(centre=(15.5 + shift, 17.5, 19.5))
        slice_ = volume[:, 0 if shift < 0 else -1, 10:26, 12:28]
        assert torch.equal(extract(volume, plan), slice_[:, None].expand(-1, 16, -1, -1))
        assert extract(volume, plan, padding="zero").count_nonzero() == 0


@pytest.mark.parametrize("angles", [(0.0, 0.0, 0.0), (0.4, 0.0, 0.0), (0.7, 0.5, 0.5)])
def test_boxes_are_no_larger_than_the_crop(angles: tuple[float, float, float]) -> None:
    class Counted:
        shape = (1, 160, 200, 200)
        largest = 0

        def reader(self) -> Callable[[Box], Tensor]:
            def read(box: Box) -> Tensor:
                size = [high - low for low, high in box]
                self.largest = max(self.largest, math.prod(size))
                return torch.zeros(1, *size)

            return read

    plan = PLAIN._replace(
        size=(64, 96, 96), centre=(80.0, 99.5, 99.5), scale=(1.0, 1.5, 1.5), angles=angles
    )
    volume = Counted()
    extract(volume, plan)
    assert 0 < volume.largest < math.prod(plan.size)


@pytest.mark.parametrize("angle", [0.0, 0.4])
def test_beyond_the_border_lies_the_edge_or_nothing(angle: float) -> None:
    volume = torch.full((1, 5, 20, 20), 0.5)
    plan = PLAIN._replace(size=(16, 32, 32), centre=(2.5, 9.5, 9.5), angles=(angle, 0.0, 0.0))
    assert torch.allclose(extract(volume, plan, padding="edge"), torch.tensor(0.5))
    empty = extract(volume, plan, padding="zero")
    assert empty.max() == pytest.approx(0.5)
    assert empty[:, 0].abs().max() == 0
    assert empty[:, :, 0].abs().max() == 0


def test_values_stay_between_0_and_1(volume: Tensor) -> None:
    rng = np.random.default_rng(0)
    for _ in range(40):
        plan = draw_crop_plan(rng, (32, 36, 40), Spacing(2.0, 1.0, 1.0), tokens=(2, 2, 2))
        crop = extract(volume.half(), plan)
        assert crop.shape[1:] == plan.size
        assert crop.dtype == torch.float32
        assert crop.min() >= 0
        assert crop.max() <= 1 + 1e-6
        assert crop.is_contiguous()


def test_only_the_box_is_read() -> None:
    volume = torch.full((1, 40, 80, 80), float("nan"))
    volume[:, 10:30, 20:60, 20:60] = 0.5
    for angles, scale in (((0.0, 0.0, 0.0), 1.3), ((0.3, 0.0, 0.0), 1.0), ((0.3, 0.2, 0.1), 1.0)):
        plan = PLAIN._replace(
            size=(8, 16, 16), centre=(19.5, 39.5, 39.5), angles=angles, scale=(1.0, scale, scale)
        )
        assert torch.isfinite(extract(volume, plan)).all()
