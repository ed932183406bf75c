"""Where voxels lie, and which sizes are refused."""

import math

import pytest

from spadnet.spacing import Spacing
from spadnet.synthesis.geometry import MAX_SLABS, blocks, plan_geometry


@pytest.mark.parametrize(
    ("spacing", "slabs"),
    [
        (Spacing(1, 1, 1), 1),
        (Spacing(0.5, 1, 1), 1),
        (Spacing(2, 1, 1), 2),
        (Spacing(5, 1, 1), 4),
        (Spacing(30, 1, 1), MAX_SLABS),
        (Spacing.planar(), 1),
    ],
)
def test_thick_slices_are_made_of_thin_ones(spacing, slabs):
    size = (1 if spacing.is_planar else 4, 8, 8)
    geometry = plan_geometry(size, spacing=spacing, field_of_view=None)
    assert geometry.slabs == slabs
    assert geometry.thin_size == (size[0] * slabs, 8, 8)


def test_voxel_centres_fill_the_span():
    geometry = plan_geometry((4, 6, 8), spacing=Spacing(4, 1, 2), field_of_view=None)
    for thin in (False, True):
        for grid, (low, high) in zip(geometry.voxels(thin=thin), geometry.spans(), strict=True):
            assert math.isclose(grid.start - grid.step / 2, low)
            assert math.isclose(grid.start + (grid.num - 0.5) * grid.step, high)


def test_structures_are_wider_than_a_slice():
    geometry = plan_geometry((2, 16, 16), spacing=Spacing(16, 1, 1), field_of_view=None)
    assert geometry.field_of_view / 4 > 16


@pytest.mark.parametrize("multiple", [1, 4])
def test_blocks_cover_every_slice_once(multiple):
    parts = blocks((12, 512, 512), device="cpu", multiple=multiple)
    assert [row for part in parts for row in range(part.start, part.stop)] == list(range(12))
    assert all(part.start % multiple == 0 for part in parts)


@pytest.mark.parametrize(
    ("size", "spacing", "view", "named"),
    [
        ((8, 8), Spacing(1, 1, 1), None, "size"),
        ((0, 8, 8), Spacing(1, 1, 1), None, "size"),
        ((2, 8, 8), Spacing.planar(), None, "planar"),
        ((2, 8, 8), Spacing(1, -1, 1), None, "spacing"),
        ((2, 8, 8), Spacing(1, float("nan"), 1), None, "spacing"),
        ((2, 8, 8), Spacing(1, 1, 1), -3.0, "field_of_view"),
    ],
)
def test_impossible_geometry_is_named(size, spacing, view, named):
    with pytest.raises(ValueError, match=named):
        plan_geometry(size, spacing=spacing, field_of_view=view)
