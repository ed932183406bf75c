"""Plans: the degree follows from the augmented spacing, crops stay inside where they can."""

import math

import numpy as np
import pytest

from spadnet.data.crop_plan import (
    NO_AUGMENT,
    CropAugment,
    crop_size,
    degree_chance,
    draw_crop_plan,
    max_token_depth,
)
from spadnet.spacing import Spacing, required_multiple

TOKENS = (4, 4, 4)
VOLUMES = [
    ((80, 80, 80), Spacing(1.0, 1.0, 1.0)),
    ((112, 101, 122), Spacing(3.0, 3.0, 3.0)),
    ((34, 128, 128), Spacing(10.0, 3.05, 3.05)),
    ((48, 160, 160), Spacing(5.0, 0.84, 0.84)),
    ((25, 256, 256), Spacing(6.5, 0.781, 0.781)),
    ((6, 300, 300), Spacing(20.0, 1.0, 1.0)),
    ((90, 50, 40), Spacing(0.4, 1.0, 1.0)),
    ((1, 512, 512), Spacing.planar()),
    ((1, 40, 30), Spacing.planar(0.3, 0.3)),
]


@pytest.mark.parametrize(("shape", "spacing"), VOLUMES)
@pytest.mark.parametrize("degree", [None, *range(6)])
def test_plans_keep_their_word(
    shape: tuple[int, int, int], spacing: Spacing, degree: int | None
) -> None:
    depth = TOKENS[0]
    if degree is not None:
        depth = max_token_depth(shape, spacing, degree=degree, tokens=TOKENS)
        if depth == 0:
            with pytest.raises(ValueError, match=f"has no degree {degree}"):
                draw_crop_plan(
                    np.random.default_rng(0), shape, spacing, tokens=TOKENS, degree=degree
                )
            return
    rng = np.random.default_rng(0)
    for _ in range(60):
        plan = draw_crop_plan(rng, shape, spacing, tokens=(depth, 4, 4), degree=degree)
        assert plan.spacing.degree() == plan.degree
        assert degree in (None, plan.degree)
        assert plan.size == crop_size(plan.degree, (depth, 4, 4))
        assert (
            all(
                size % multiple == 0
                for size, multiple in zip(plan.size, required_multiple(plan.degree), strict=True)
            )
            or plan.degree == 5
        )
        assert plan.spacing.y == pytest.approx(spacing.y * plan.scale[1])
        if not spacing.is_planar and plan.degree < 5:
            assert plan.spacing.z == pytest.approx(spacing.z * plan.scale[0] * plan.slab)
        if any(plan.angles):
            continue
        for axis in range(3):
            extent = plan.size[axis] * plan.scale[axis] * (plan.slab if axis == 0 else 1)
            first = plan.centre[axis] - (extent - 1) / 2
            assert first == pytest.approx(round(first), abs=1e-6)
            if extent <= shape[axis]:
                assert first >= -1e-6
                assert first + extent <= shape[axis] + 1e-6


def test_isotropic_volume_serves_at_every_degree() -> None:
    shape, spacing = VOLUMES[0]
    depths = [max_token_depth(shape, spacing, degree=d, tokens=TOKENS) for d in range(6)]
    assert depths == [4, 4, 4, 4, 4, 1]
    plan = draw_crop_plan(np.random.default_rng(0), shape, spacing, tokens=TOKENS, degree=3)
    assert plan.slab in (4, 8, 16)


def test_thick_slices_never_become_thin_ones() -> None:
    for degree in (0, 1):
        assert (
            max_token_depth((30, 256, 256), Spacing(6, 0.7, 0.7), degree=degree, tokens=TOKENS) == 0
        )


def test_flat_volumes_give_shallow_crops() -> None:
    assert max_token_depth((20, 96, 96), Spacing(3, 3, 3), degree=0, tokens=TOKENS) == 1
    assert max_token_depth((40, 96, 96), Spacing(3, 3, 3), degree=0, tokens=TOKENS) == 2
    assert max_token_depth((5, 96, 96), Spacing(3, 3, 3), degree=0, tokens=TOKENS) == 1


def test_without_augmentation_only_the_place_varies() -> None:
    rng = np.random.default_rng(0)
    plans = [
        draw_crop_plan(
            rng, (48, 160, 160), Spacing(5, 0.84, 0.84), tokens=TOKENS, augment=NO_AUGMENT
        )
        for _ in range(20)
    ]
    assert {plan.degree for plan in plans} == {2}
    assert {(plan.scale, plan.slab, plan.flips, plan.angles) for plan in plans} == {
        ((1.0, 1.0, 1.0), 1, (False, False, False), (0.0, 0.0, 0.0))
    }
    assert len({plan.centre for plan in plans}) > 10


def test_every_place_is_reached() -> None:
    rng = np.random.default_rng(0)
    firsts = {
        draw_crop_plan(
            rng, (1, 67, 64), Spacing.planar(), tokens=TOKENS, augment=NO_AUGMENT
        ).centre[1]
        - 31.5
        for _ in range(100)
    }
    assert firsts == {0, 1, 2, 3}


def test_augmentation_happens_as_often_as_said() -> None:
    rng = np.random.default_rng(0)
    plans = [
        draw_crop_plan(rng, (200, 400, 400), Spacing(1, 1, 1), tokens=TOKENS) for _ in range(2000)
    ]
    shares = {
        "scaled": np.mean([plan.scale[1] != 1 for plan in plans]),
        "turned": np.mean([plan.angles[0] != 0 for plan in plans]),
        "flipped": np.mean([plan.flips for plan in plans]),
        "thick": np.mean([plan.slab > 1 for plan in plans]),
    }
    assert shares == pytest.approx(
        {"scaled": 0.5, "turned": 0.3, "flipped": 0.5, "thick": 0.3}, abs=0.05
    )
    scales = [plan.scale[1] for plan in plans]
    assert min(scales) >= 0.75
    assert max(scales) <= 2
    assert max(abs(plan.angles[0]) for plan in plans) <= math.pi / 2
    tilted = [plan for plan in plans if plan.angles[1] != 0]
    assert tilted
    assert all(1 / 1.5 <= plan.spacing.z / plan.spacing.y <= 1.5 for plan in tilted)


def test_a_fractional_degree_is_rounded_up_as_often_as_its_fraction() -> None:
    spacing = Spacing(2**1.25, 1.0, 1.0)
    chances = [degree_chance(spacing, degree, fractional=True) for degree in range(4)]
    assert chances == pytest.approx([0, 0.75, 0.25, 0])
    assert [degree_chance(spacing, d, fractional=False) for d in range(4)] == [0, 1, 0, 0]
    finer, flat = Spacing(0.5, 1.0, 1.0), Spacing.planar()
    assert [degree_chance(finer, d, fractional=True) for d in (0, 1)] == [1, 0]
    assert [degree_chance(flat, d, fractional=True) for d in (4, 5)] == [0, 1]
    rng = np.random.default_rng(0)
    augment = NO_AUGMENT._replace(fractional_degree=True)
    plans = [
        draw_crop_plan(rng, (80, 80, 80), spacing, tokens=TOKENS, augment=augment)
        for _ in range(1000)
    ]
    assert np.mean([plan.degree == 2 for plan in plans]) == pytest.approx(0.25, abs=0.04)
    assert all(plan.size == crop_size(plan.degree, TOKENS) for plan in plans)


def test_a_degree_can_be_asked_for_from_either_side() -> None:
    rng = np.random.default_rng(0)
    augment = CropAugment(in_plane_prob=1.0, thick_prob=0.0, fractional_degree=True)
    ratios = []
    for _ in range(300):
        plan = draw_crop_plan(
            rng, (60, 400, 400), Spacing(4.0, 1.0, 1.0), tokens=TOKENS, degree=2, augment=augment
        )
        ratios.append(math.log2(plan.spacing.z / plan.spacing.y))
    assert min(ratios) == pytest.approx(1.0, abs=0.1)  # pixels twice as wide
    assert max(ratios) == pytest.approx(math.log2(4 / 0.75), abs=0.1)


def test_small_images_are_enlarged_before_they_are_padded() -> None:
    rng = np.random.default_rng(0)
    augment = CropAugment(in_plane_prob=1.0)
    scales = {
        draw_crop_plan(rng, (1, 50, 50), Spacing.planar(), tokens=TOKENS, augment=augment).scale[1]
        for _ in range(50)
    }
    assert max(scales) <= 50 / 64
