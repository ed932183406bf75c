"""Cropping, scaling and resizing keep the geometry true."""

import numpy as np
import pytest

from spadnet.data.image import Image, ImageError, orient, plain_grid
from spadnet.data.preprocess import crop_image, prepare, resize, to_channels
from spadnet.spacing import Spacing


def image_of(array: np.ndarray, spacing: tuple[float, float, float] = (3.0, 1.0, 1.0)) -> Image:
    size = (array.shape[1], array.shape[2], array.shape[3])
    grid = plain_grid(size, num_axes=3)._replace(spacing=spacing, origin=(10.0, 20.0, 30.0))
    return orient(array, grid, source="scan")


def body(dtype: type = np.int16) -> np.ndarray:
    """A body of random values between 100 and 900 in air of -1000."""
    array = np.full((1, 20, 30, 40), -1000, dtype)
    array[:, 3:17, 5:25, 6:36] = np.random.default_rng(0).integers(100, 900, (14, 20, 30))
    return array


def test_crop_to_the_body_moves_the_origin() -> None:
    prepared = prepare(image_of(body()))
    assert prepared.array.shape == (1, 14, 20, 30)
    assert prepared.origin == (10 + 6, 20 + 5, 30 + 3 * 3)
    assert prepared.array.dtype == np.float32
    assert prepared.array.min() == 0
    assert prepared.array.max() == 1
    whole = prepare(image_of(body()), crop=False)
    assert whole.array.shape == (1, 20, 30, 40)
    assert whole.origin == (10, 20, 30)


def test_intensities_span_the_percentiles_of_the_foreground() -> None:
    array = body()
    inside = array[array > -1000]
    low, high = np.percentile(inside[inside > np.percentile(inside, 0.5)], (0.5, 99.5))
    prepared = prepare(image_of(array))
    cut = array[:, 3:17, 5:25, 6:36]
    np.testing.assert_allclose(prepared.array, np.clip((cut - low) / (high - low), 0, 1), atol=1e-5)


def test_affine_change_of_intensity_changes_nothing() -> None:
    first = prepare(image_of(body(np.float32))).array
    second = prepare(image_of(body(np.float32) * 7 + 50)).array
    np.testing.assert_allclose(first, second, atol=1e-5)


def test_8_bit_and_colour_are_divided_by_white() -> None:
    rng = np.random.default_rng(0)
    grey = rng.integers(1, 200, (1, 1, 20, 30), dtype=np.uint8)
    picture = image_of(grey)
    np.testing.assert_allclose(prepare(picture).array, grey / 255, atol=1e-6)
    deep = rng.integers(1, 60000, (3, 1, 20, 30), dtype=np.uint16)
    np.testing.assert_allclose(prepare(image_of(deep)).array, deep / 65535, atol=1e-6)


def test_picture_is_cropped_to_what_is_not_black() -> None:
    array = np.zeros((3, 1, 40, 50), np.uint8)
    array[1, :, 10:30, 20:45] = 99
    prepared = prepare(image_of(array))
    assert prepared.array.shape == (3, 1, 20, 25)
    assert prepared.origin[:2] == (30.0, 30.0)


def test_large_pictures_shrink_within_the_same_borders() -> None:
    image = image_of(np.random.default_rng(0).integers(1, 255, (1, 1, 600, 900), dtype=np.uint8))
    prepared = prepare(image, max_in_plane=300)
    assert prepared.array.shape == (1, 1, 300, 450)
    assert prepared.spacing == Spacing.planar(2.0, 2.0)
    assert prepared.origin[:2] == (10.5, 20.5)
    assert prepared.spacing.degree() == 5


def test_resize_keeps_borders_and_mean() -> None:
    ramp = np.broadcast_to(np.linspace(0, 1, 40, dtype=np.float32), (1, 20, 30, 40)).copy()
    image = image_of(ramp)
    smaller = resize(image, (10, 15, 20))
    assert smaller.array.mean() == pytest.approx(0.5, abs=1e-3)
    for axis, (before, after) in enumerate(zip((20, 30, 40), (10, 15, 20), strict=True)):
        assert smaller.spacing[axis] * after == pytest.approx(image.spacing[axis] * before)
        border = image.origin[2 - axis] - image.spacing[axis] / 2
        assert smaller.origin[2 - axis] - smaller.spacing[axis] / 2 == pytest.approx(border)
    back = resize(smaller, (20, 30, 40))
    np.testing.assert_allclose(back.array[..., 4:-4], ramp[..., 4:-4], atol=0.02)


def test_constant_image_is_refused() -> None:
    with pytest.raises(ImageError, match="scan: all voxels are 5"):
        prepare(image_of(np.full((1, 4, 5, 6), 5, np.int16)))


def test_two_values_are_enough() -> None:
    array = np.zeros((1, 8, 9, 10), np.int16)
    array[:, 2:6, 2:6, 2:6] = 1
    prepared = prepare(image_of(array))
    assert np.isfinite(prepared.array).all()
    assert prepared.array.max() == 1


def test_crop_image_is_a_slice() -> None:
    image = image_of(body())
    cut = crop_image(image, (slice(1, 5), slice(2, 9), slice(3, 20)))
    assert (cut.array == image.array[:, 1:5, 2:9, 3:20]).all()
    assert cut.origin == (13.0, 22.0, 33.0)


def test_to_channels() -> None:
    colour = np.random.default_rng(0).random((3, 1, 4, 5)).astype(np.float32)
    grey = to_channels(colour, 1)
    luma = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    np.testing.assert_allclose(grey[0], luma, rtol=1e-6)  # products may be summed in another order
    assert grey.dtype == np.float32
    assert (to_channels(grey, 3) == grey).all()
    assert to_channels(colour, 3) is colour
    np.testing.assert_allclose(to_channels(np.repeat(grey, 3, axis=0), 1), grey, rtol=1e-6)
    with pytest.raises(ValueError, match="2 channels and the model takes 1"):
        to_channels(colour[:2], 1)
