"""Cutting crops: equal to slicing, averaging, turning and reading off a linear field."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from spadnet.data.crop_plan import CropPlan, draw_crop_plan
from spadnet.data.extract import extract
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
