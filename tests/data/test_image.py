"""Orientation: what becomes z, which way it runs, and the way back."""

from itertools import permutations, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spadnet.data.image import (
    Grid,
    Image,
    ImageError,
    body_axis,
    nearest_rotation,
    on_own_grid,
    orient,
    plain_grid,
    restore_axes,
    shear_angle,
)
from spadnet.data.warp import turn_to_z
from spadnet.spacing import PLANAR_DEPTH, Spacing


def grid_of(
    size: tuple[int, int, int], spacing: tuple[float, float, float], direction: np.ndarray
) -> Grid:
    rows = [tuple(row) for row in direction.tolist()]
    return Grid(size, spacing, (rows[0], rows[1], rows[2]), (10.0, -20.0, 30.0), 3)


def world(image: Image, voxel: tuple[int, int, int]) -> np.ndarray:
    position = np.array(image.origin)
    for axis in range(3):
        position = position + image.spacing[axis] * voxel[axis] * np.array(image.direction[axis])
    return position


def signed_permutations() -> list[np.ndarray]:
    """All 48 ways to lay three axes along the world's."""
    eye = np.eye(3)
    return [
        np.array([eye[axis] * sign for axis, sign in zip(order, signs, strict=True)])
        for order in permutations(range(3))
        for signs in product((1.0, -1.0), repeat=3)
    ]


@pytest.mark.parametrize("direction", signed_permutations())
def test_isotropic_volume_lies_axially_from_any_orientation(direction: np.ndarray) -> None:
    array = np.arange(4 * 5 * 6).reshape(1, 4, 5, 6)
    image = orient(array, grid_of((4, 5, 6), (2.0, 2.0, 2.0), direction), source="x")
    # z towards the head, rows towards the back, columns towards the left.
    assert image.direction == ((0, 0, 1), (0, 1, 0), (1, 0, 0))


@pytest.mark.parametrize("odd", range(3))
@pytest.mark.parametrize("direction", signed_permutations()[::5])
def test_odd_axis_becomes_z(odd: int, direction: np.ndarray) -> None:
    spacing = [0.8, 0.8, 0.8]
    spacing[odd] = 5.0
    array = np.arange(4 * 5 * 6).reshape(1, 4, 5, 6)
    image = orient(array, grid_of((4, 5, 6), tuple(spacing), direction), source="x")
    assert image.spacing == (5.0, 0.8, 0.8)
    assert image.array.shape[1] == array.shape[1 + odd]
    assert image.axes.order[0] == odd


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("direction", signed_permutations()[::5])
def test_files_are_turned_as_training_turns_volumes(axis: int, direction: np.ndarray) -> None:
    """However a file stores a body, thick slices along an axis come as ``turn_to_z`` turns them."""
    body = np.arange(4 * 5 * 6.0).reshape(1, 4, 5, 6)  # towards the head, the back and the left
    world = [2 - int(np.abs(row).argmax()) for row in direction]  # the body's axis of each own one
    flips = tuple(1 + own for own, row in enumerate(direction) if row.sum() < 0)
    array = np.flip(body.transpose(0, *(1 + a for a in world)), flips)
    spacing = tuple(5.0 if a == axis else 0.8 for a in world)
    grid = grid_of(array.shape[1:], spacing, direction)  # type: ignore[arg-type]
    image = orient(np.ascontiguousarray(array), grid, source="x")
    turned, _, _ = turn_to_z(torch.from_numpy(body), None, Spacing(1, 1, 1), axis=axis)
    assert np.array_equal(image.array, turned.numpy())
    assert body_axis(image) == axis


def test_slices_of_an_oblique_file_lie_along_the_axis_that_the_file_was_turned_by() -> None:
    """Slices go upwards most of all, but rows go so even more: the slices become coronal."""
    rotation = np.array([[-0.41, -0.58, 0.70], [-0.44, -0.55, -0.71], [0.80, -0.60, -0.03]])
    u, _, v = np.linalg.svd(rotation)
    grid = grid_of((4, 5, 6), (5.0, 0.8, 0.8), u @ v)
    assert body_axis(orient(np.zeros((1, 4, 5, 6)), grid, source="x")) == 1


@settings(max_examples=60, deadline=None)
@given(
    angles=st.tuples(*[st.floats(-3, 3)] * 3),
    mirrored=st.booleans(),
    spacing=st.tuples(*[st.sampled_from([0.5, 1.0, 1.001, 3.0])] * 3),
    size=st.permutations([2, 3, 4]),
)
def test_voxels_keep_their_place_in_the_world(
    angles: tuple[float, float, float],
    mirrored: bool,
    spacing: tuple[float, float, float],
    size: list[int],
) -> None:
    direction = np.eye(3)
    for axis, angle in enumerate(angles):
        first, second = (axis + 1) % 3, (axis + 2) % 3
        turn = np.eye(3)
        turn[first, first] = turn[second, second] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        direction = direction @ turn
    direction[0] *= -1 if mirrored else 1
    shape = (size[0], size[1], size[2])
    array = np.arange(24).reshape(1, *shape)
    grid = grid_of(shape, spacing, direction)
    image = orient(array, grid, source="x")
    assert (restore_axes(image.array, image.axes) == array).all()
    for voxel in ((0, 0, 0), (1, 1, 1), tuple(n - 1 for n in image.array.shape[1:])):
        value = image.array[(0, *voxel)]
        stored = np.argwhere(array[0] == value)[0]
        expected = np.array(grid.origin)
        for axis in range(3):
            expected = expected + spacing[axis] * stored[axis] * direction[axis]
        np.testing.assert_allclose(world(image, voxel), expected, atol=1e-9)


def test_restore_axes_takes_leading_axes() -> None:
    direction = signed_permutations()[17]
    array = np.random.default_rng(0).random((2, 3, 4, 5))
    image = orient(array, grid_of((3, 4, 5), (1.0, 1.0, 4.0), direction), source="x")
    assert (restore_axes(image.array, image.axes) == array).all()
    assert (restore_axes(image.array[0], image.axes) == array[0]).all()
    stacked = np.stack([image.array, image.array])
    assert (restore_axes(stacked, image.axes)[1] == array).all()


@pytest.mark.parametrize("axis", range(3))
def test_single_voxel_axis_becomes_z_whatever_its_spacing(axis: int) -> None:
    size = [5, 6, 7]
    size[axis] = 1
    shape = (size[0], size[1], size[2])
    image = orient(np.zeros((1, *shape)), plain_grid(shape, num_axes=3), source="x")
    assert image.array.shape[1] == 1
    assert image.spacing.z == PLANAR_DEPTH
    assert image.spacing.degree() == 5


@pytest.mark.parametrize(
    ("size", "spacing", "reason"),
    [
        ((1, 1, 5), (1.0, 1.0, 1.0), "two single-voxel axes"),
        ((0, 4, 5), (1.0, 1.0, 1.0), "without voxels"),
        ((3, 4, 5), (0.0, 1.0, 1.0), "spacing 0 x 1 x 1"),
        ((3, 4, 5), (1.0, -1.0, 1.0), "spacing 1 x -1 x 1"),
        ((3, 4, 5), (1.0, float("nan"), 1.0), "spacing 1 x nan x 1"),
        ((3, 4, 5), (1.0, 1.0, float("inf")), "spacing 1 x 1 x inf"),
    ],
)
def test_impossible_geometry_is_named(
    size: tuple[int, int, int], spacing: tuple[float, float, float], reason: str
) -> None:
    with pytest.raises(ImageError, match=f"^scan: .*{reason}"):
        orient(np.zeros((1, *size)), grid_of(size, spacing, np.eye(3)), source="scan")


def test_degenerate_direction_is_named() -> None:
    flat = np.array([[1.0, 0, 0], [1.0, 0, 0], [0, 0, 1.0]])
    with pytest.raises(ImageError, match="degenerate"):
        orient(np.zeros((1, 3, 4, 5)), grid_of((3, 4, 5), (1, 1, 1), flat), source="scan")


def test_nearest_rotation_is_orthonormal_and_leaves_rotations_alone() -> None:
    sheared = np.array([[1.0, 0, 0], [0, 1.0, 0], [0, 0.3, 1.0]])
    sheared /= np.linalg.norm(sheared, axis=1, keepdims=True)
    rotation = nearest_rotation(sheared)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    assert nearest_rotation(rotation) is rotation
    assert 5 < shear_angle(sheared) < 17
    assert shear_angle(rotation) < 1e-4


def test_on_own_grid_forgets_the_file() -> None:
    direction = signed_permutations()[11]
    array = np.random.default_rng(0).random((1, 3, 4, 5))
    image = orient(array, grid_of((3, 4, 5), (1.0, 4.0, 1.0), direction), source="x")
    own = on_own_grid(image)
    assert (restore_axes(own.array, own.axes) == image.array).all()
    assert own.axes.grid.origin == image.origin
