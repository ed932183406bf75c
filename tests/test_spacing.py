"""The degree, and what follows from it, at the edges where users will meet it."""

import math

import pytest
import torch

from spadnet.spacing import (
    MAX_DEGREE,
    PLANAR_DEPTH,
    Spacing,
    depth_axis,
    depth_stride,
    required_multiple,
)


@pytest.mark.parametrize(
    ("spacing", "degree"),
    [
        (Spacing(1.0, 1.0, 1.0), 0),
        (Spacing(1.99, 1.0, 1.0), 0),
        (Spacing(2.0, 1.0, 1.0), 1),
        (Spacing(3.9, 1.0, 1.0), 1),
        (Spacing(4.0, 1.0, 1.0), 2),
        (Spacing(5.0, 0.8, 0.8), 2),
        (Spacing(7.2, 0.9, 0.9), 3),
        (Spacing(16.0, 1.0, 1.0), 4),
        (Spacing(32.0, 1.0, 1.0), 5),
        (Spacing(1e4, 1.0, 1.0), 5),
        (Spacing(math.inf, 1.0, 1.0), 5),
        (Spacing(0.3, 1.0, 1.0), 0),  # finer than in-plane
        (Spacing(4.0, 2.0, 1.0), 2),  # the finer pixel side counts
        (Spacing(4.0, 1.0, 2.0), 2),
        (Spacing.planar(), 5),
        (Spacing.planar(0.05, 12.0), 5),
    ],
)
def test_degree(spacing: Spacing, degree: int) -> None:
    assert spacing.degree() == degree
    assert spacing.degree(2) == min(degree, 2)


@pytest.mark.parametrize("exponent", range(MAX_DEGREE + 1))
@pytest.mark.parametrize("pixel", [0.1, 0.7, 0.9765625, 1.1, 3.0])
def test_degree_survives_single_precision(exponent: int, pixel: float) -> None:
    pixel = torch.tensor(pixel, dtype=torch.float32).item()
    thick = torch.tensor(pixel * 2**exponent, dtype=torch.float32).item()
    assert Spacing(thick, pixel, pixel).degree() == exponent


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, -math.inf])
@pytest.mark.parametrize("name", ["z", "y", "x"])
def test_impossible_spacing_is_an_error_that_names_it(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name}={value}"):
        Spacing(1.0, 1.0, 1.0)._replace(**{name: value}).degree()


def test_pixels_of_infinite_size_are_an_error() -> None:
    with pytest.raises(ValueError, match="x=inf"):
        Spacing(1.0, 1.0, math.inf).degree()


def test_planar_is_one_infinitely_thick_slice() -> None:
    planar = Spacing.planar(0.5, 0.25)
    assert planar == (PLANAR_DEPTH, 0.5, 0.25)
    assert planar.is_planar
    assert not Spacing(1e3, 1.0, 1.0).is_planar


@pytest.mark.parametrize("degree", range(MAX_DEGREE + 1))
def test_depth_is_halved_only_once_pixels_are_as_large_as_slices(degree: int) -> None:
    total = 1
    for level in range(4):  # four layers of stride 2 do what one of stride 16 does
        total *= depth_stride(2, max(degree - level, 0))
    assert total == depth_stride(16, degree) == max(16 >> degree, 1)
    assert required_multiple(degree) == (total, 16, 16)
    assert required_multiple(degree, stride=8) == (max(8 >> degree, 1), 8, 8)


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("odd", [0.5, 3.0])
def test_odd_spacing_becomes_depth(axis: int, odd: float) -> None:
    spacing = [1.0, 1.0, 1.0]
    spacing[axis] = odd
    assert depth_axis(spacing) == axis


def test_isotropic_volumes_have_no_odd_axis() -> None:
    assert depth_axis((1.0, 1.0, 1.0)) is None
    assert depth_axis((1.0, 1.005, 1.0)) is None


def test_depth_leaves_the_two_spacings_that_are_most_alike() -> None:
    assert depth_axis((0.7, 5.0, 0.9)) == 1
    assert depth_axis((0.4, 1.0, 1.1)) == 0
