"""Laws of turning, scaling, mirroring and averaging crops."""

import math

import numpy as np
import pytest
import torch

from spadnet.data.warp import (
    Warp,
    WarpRange,
    average_slices,
    draw_warp,
    foreground_centre,
    sample,
    turn_to_z,
    turned_axes,
)
from spadnet.spacing import Spacing

CUBE = Spacing(1.0, 1.0, 1.0)


def volume(*size: int) -> torch.Tensor:
    return torch.rand(1, *size, generator=torch.Generator().manual_seed(0))


def middle(x: torch.Tensor) -> list[float]:
    return [(n - 1) / 2 for n in x.shape[1:]]


def still(**changes: object) -> Warp:
    return Warp.none()._replace(**changes)  # type: ignore[arg-type]


def test_nothing_changes_nothing_and_beyond_the_border_is_zero() -> None:
    x = volume(4, 5, 6)
    assert torch.equal(sample(x, (4, 5, 6), middle(x), Warp.none(), CUBE), x)
    wide = sample(x, (6, 7, 8), middle(x), Warp.none(), CUBE)
    assert torch.equal(wide[:, 1:-1, 1:-1, 1:-1], x)
    assert wide.sum().item() == pytest.approx(x.sum().item(), rel=1e-5)
    far = sample(x, (2, 2, 2), (30.5, 30.5, 30.5), Warp.none(), CUBE)
    assert far.abs().sum() == 0


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_quarter_turns_and_flips_are_exact(axis: int) -> None:
    x = volume(6, 6, 6)
    planes = {0: (2, 3), 1: (1, 3), 2: (1, 2)}
    angles = [0.0, 0.0, 0.0]
    angles[axis] = math.pi / 2
    turned = sample(x, (6, 6, 6), middle(x), still(angles=tuple(angles)), CUBE)
    expected = [torch.rot90(x, k, planes[axis]) for k in (1, -1)]
    assert min((turned - e).abs().max() for e in expected) < 1e-4
    flips = tuple(i == axis for i in range(3))
    assert torch.equal(sample(x, (6, 6, 6), middle(x), still(flips=flips), CUBE), x.flip(1 + axis))


def test_rotations_are_rigid_in_millimetres() -> None:
    # A bar along z, 8 slices of 4 mm, tilted about x lies along y: 32 pixels of 1 mm.
    x = torch.zeros(1, 17, 65, 3)
    x[:, 4:13, 32] = 1
    warp = still(angles=(0.0, 0.0, math.pi / 2))
    turned = sample(x, (17, 65, 3), middle(x), warp, Spacing(4.0, 1.0, 1.0))
    row = turned[0, 8, :, 1] > 0.5
    assert 30 <= int(row.sum()) <= 36
    assert bool(row[20])
    assert not bool(row[8])


def test_scale_and_nearest_labels() -> None:
    x = volume(1, 32, 32)
    label = (x[0] > 0.5).to(torch.uint8)[None]
    warp = still(scale=2.0)
    large = sample(label, (1, 32, 32), middle(label), warp, Spacing.planar(), nearest=True)
    assert large.dtype == torch.uint8
    assert set(large.unique().tolist()) <= {0, 1}
    centre = label[0, 0, 8:24, 8:24].repeat_interleave(2, 0).repeat_interleave(2, 1)
    assert (large[0, 0] == centre).float().mean() > 0.99


def test_draws_stay_in_range_and_flat_ones_in_plane() -> None:
    ranges = WarpRange(1.0, 20.0, 10.0, 1.0, (0.5, 2.0), 0.1, (1.0, 0.0, 1.0))
    rng = np.random.default_rng(0)
    for _ in range(50):
        warp = draw_warp(rng, ranges)
        assert abs(math.degrees(warp.angles[0])) <= 20
        assert max(abs(math.degrees(angle)) for angle in warp.angles[1:]) <= 10
        assert 0.5 <= warp.scale <= 2
        assert warp.flips == (True, False, True)
        flat = warp.flat()
        assert flat.angles[1:] == (0.0, 0.0)
        assert flat.shift[0] == 0
        assert not flat.flips[0]


def test_crops_find_rare_classes_and_stay_inside() -> None:
    label = torch.zeros(20, 20, 20, dtype=torch.uint8)
    label[:10] = 1
    label[19, 19, 19] = 2
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(40):
        centre = foreground_centre(rng, (20, 20, 20), (8, 8, 8), label)
        crop = sample(label[None], (8, 8, 8), centre, Warp.none(), CUBE, nearest=True)
        assert all(3.5 <= c <= 15.5 for c in centre)
        found += bool((crop == 2).any())
    assert 10 <= found <= 30  # every second crop
    centre = foreground_centre(rng, (4, 20, 20), (8, 8, 8), None)
    assert centre[0] == -2 + 3.5


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_are_averaged_along_an_axis_turned_to_z(axis: int) -> None:
    x = volume(8, 12, 16)
    label = (x[0] > 0.5).to(torch.uint8)
    spacing = Spacing(1.0, 1.2, 1.4)
    turned, classes, mm = turn_to_z(x, label, spacing, axis=axis)
    assert classes is not None
    assert torch.equal(classes, (turned[0] > 0.5).to(torch.uint8))
    assert mm == tuple(spacing[a] for a in turned_axes(axis))
    thick = average_slices(turned, slab=4)
    assert thick.shape[1] == (8, 12, 16)[axis] // 4
    first = x.movedim(1 + axis, 1)[:, :4].mean(1)  # what the first thick slice shows
    shown = thick[:, 0] if axis == 0 else thick[:, 0].flip(1)
    torch.testing.assert_close(shown, first)


def test_the_last_slice_is_repeated_to_fill_a_slab() -> None:
    x = volume(6, 4, 4)
    torch.testing.assert_close(average_slices(x, slab=4)[:, 1], x[:, [4, 5, 5, 5]].mean(1))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_mirrors_stay_with_their_axis_when_it_is_turned(axis: int) -> None:
    x = volume(8, 12, 16)
    warp = Warp.none()._replace(flips=(False, False, True))  # left and right
    spacing = Spacing(1, 1, 1)
    mirrored = turn_to_z(x.flip(3), None, spacing, axis=axis)[0]
    turned = turn_to_z(x, None, spacing, axis=axis)[0]
    centre = [(n - 1) / 2 for n in turned.shape[1:]]
    found = sample(turned, turned.shape[1:], centre, warp.turned(axis), spacing)
    torch.testing.assert_close(found, mirrored)


def test_beyond_the_border_is_zero_or_what_lies_there() -> None:
    x = volume(4, 4, 4) + 1
    spacing, centre = Spacing(1, 1, 1), (0.5, 1.5, 1.5)
    for warp in (Warp.none(), Warp.none()._replace(scale=1.0 + 1e-6)):
        zero, on = (
            sample(x, (4, 4, 4), centre, warp, spacing, border=border) for border in (False, True)
        )
        torch.testing.assert_close(zero[:, 0], torch.zeros(1, 4, 4), rtol=0, atol=1e-4)
        torch.testing.assert_close(on[:, 0], x[:, 0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(on[:, 1:], zero[:, 1:], rtol=1e-4, atol=1e-4)
