"""A stored image gives every box as the image in memory does, and reads no more than the box."""

import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch

from spadnet.data.crop_plan import draw_crop_plan
from spadnet.data.extract import extract
from spadnet.data.image import Image, ImageError, orient, plain_grid
from spadnet.data.preprocess import Window, cut_to_body, prepare, to_channels
from spadnet.data.store import StoredImage, open_volume, pack, storable, write_volume
from spadnet.spacing import Spacing


def stored(array: np.ndarray, window: Window, spacing: Spacing) -> StoredImage:
    channels, depth, height, width = array.shape
    return StoredImage("key", (channels, depth, height, width), spacing, window, "MR", "hash")


def write(path: Path, image: Image) -> Path:
    cut, window = cut_to_body(image)
    array, window = storable(cut.array, window)
    write_volume(path, array, stored(array, window, cut.spacing))
    return path


def image_of(array: np.ndarray, spacing: tuple[float, float, float] = (2.0, 1.0, 1.0)) -> Image:
    grid = plain_grid((array.shape[1], array.shape[2], array.shape[3]), num_axes=3)
    return orient(array, grid._replace(spacing=spacing), source="scan")


@pytest.fixture
def volume() -> Image:
    rng = np.random.default_rng(0)
    return image_of(rng.integers(-1000, 2000, (1, 40, 150, 140)).astype(np.int16))


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [("int16", 0), ("uint8", 0), ("int32", 0), ("float64", 0), ("float32", 5e-4)],
)
def test_boxes_are_those_of_the_image_in_memory(
    tmp_path: Path, dtype: str, tolerance: float
) -> None:
    rng = np.random.default_rng(1)
    array = rng.integers(0, 200, (1, 20, 50, 60)).astype(dtype)
    if dtype == "float32":
        array *= np.float32(0.377)
    image = image_of(array)
    whole = torch.from_numpy(prepare(image).array)
    lazy = open_volume(write(tmp_path / "a.b2nd", image))
    assert lazy.shape == whole.shape
    assert lazy.stored.spacing == image.spacing
    for box in (((0, 1), (0, 1), (0, 1)), ((3, 17), (5, 50), (9, 41))):
        cut = whole[(slice(None), *(slice(*bounds) for bounds in box))]
        read = lazy.read(box)
        assert read.dtype == torch.float32
        torch.testing.assert_close(read, cut, rtol=0, atol=tolerance)
    torch.testing.assert_close(lazy.read_all(), whole, rtol=0, atol=tolerance)


def test_crops_are_those_of_the_image_in_memory(tmp_path: Path, volume: Image) -> None:
    lazy = open_volume(write(tmp_path / "a.b2nd", volume))
    whole = torch.from_numpy(prepare(volume).array)
    shape = (whole.shape[1], whole.shape[2], whole.shape[3])
    for seed in range(12):
        rng = np.random.default_rng(seed)
        plan = draw_crop_plan(rng, shape, volume.spacing, tokens=(2, 3, 3))
        # Sums over slices depend on the memory layout in the last bit.
        torch.testing.assert_close(extract(lazy, plan), extract(whole, plan), rtol=0, atol=1e-6)


def test_channels_are_made_to_fit(tmp_path: Path) -> None:
    colour = np.random.default_rng(0).integers(0, 256, (3, 1, 30, 40), dtype=np.uint8)
    path = write(tmp_path / "a.b2nd", image_of(colour))
    grey = open_volume(path, in_chans=1)
    assert grey.shape == (1, 1, 30, 40)
    expected = to_channels(prepare(image_of(colour)).array, 1)
    np.testing.assert_allclose(grey.read_all().numpy(), expected, atol=1e-6)
    with pytest.raises(ValueError, match="3 channels and the model takes 2"):
        open_volume(path, in_chans=2)


def test_a_crop_costs_a_crop(tmp_path: Path, volume: Image) -> None:
    lazy = open_volume(write(tmp_path / "a.b2nd", volume))
    box = ((4, 20), (10, 74), (10, 74))
    crop = lazy.read(box)
    tracemalloc.start()
    lazy.read(box)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * crop.numel() * 4


def test_damage_elsewhere_is_not_read(tmp_path: Path, volume: Image) -> None:
    path = write(tmp_path / "a.b2nd", volume)
    lazy = open_volume(path)
    box = ((0, 8), (0, 32), (0, 64))
    before = lazy.read(box)
    content = bytearray(path.read_bytes())
    middle = len(content) * 5 // 8
    content[middle : middle + 40_000] = bytes(40_000)
    path.write_bytes(content)
    assert torch.equal(lazy.read(box), before)


def test_equal_images_give_equal_bytes() -> None:
    array = np.arange(2 * 30 * 40, dtype=np.int16).reshape(1, 2, 30, 40)
    about = stored(array, Window(0, 9), Spacing(1, 1, 1))
    assert pack(array, about) == pack(array.copy(), about)


def test_other_processes_can_read_it(tmp_path: Path, volume: Image) -> None:
    lazy = open_volume(write(tmp_path / "a.b2nd", volume))
    sent = pickle.dumps(lazy)
    assert len(sent) < 2000
    box = ((0, 2), (0, 3), (0, 4))
    assert torch.equal(pickle.loads(sent).read(box), lazy.read(box))


@pytest.mark.parametrize("box", [((0, 41), (0, 1), (0, 1)), ((-1, 2), (0, 1), (0, 1))])
def test_box_outside_is_refused(
    tmp_path: Path, volume: Image, box: tuple[tuple[int, int], ...]
) -> None:
    lazy = open_volume(write(tmp_path / "a.b2nd", volume))
    with pytest.raises(ValueError, match="leaves the image"):
        lazy.read(box)  # type: ignore[arg-type]


def test_what_is_no_stored_image_is_refused_by_name(tmp_path: Path, volume: Image) -> None:
    path = tmp_path / "a.b2nd"
    with pytest.raises(ImageError, match=r"a\.b2nd: no such file"):
        open_volume(path)
    path.write_bytes(b"nothing")
    with pytest.raises(ImageError, match=r"a\.b2nd: "):
        open_volume(path)
    whole = write(path, volume).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ImageError, match=r"a\.b2nd: "):
        open_volume(path).read_all()


def test_voxels_keep_their_type_where_16_bits_hold_them() -> None:
    window = Window(1.0, 5.0)
    for kind in (np.uint8, np.int8, np.int16, np.uint16):
        array = np.arange(8, dtype=kind).reshape(1, 2, 2, 2)
        kept, same = storable(array, window)
        assert kept is array
        assert same == window
    for array, kind in (
        (np.array([0.0, 255.0]), np.uint8),
        (np.array([-1024, 3071], np.int64), np.int16),
        (np.array([0, 65535], np.int32), np.uint16),
    ):
        kept, same = storable(array.reshape(1, 1, 1, 2), window)
        assert (kept.dtype, same) == (kind, window)
        assert (kept.ravel() == array).all()
    scaled, unit = storable(np.array([0.5, 5.0, 1e6]).reshape(1, 1, 1, 3), window)
    assert scaled.dtype == np.float16
    assert unit == (0.0, 1.0)
    assert scaled.ravel().tolist() == [0.0, 1.0, 1.0]
