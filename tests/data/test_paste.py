"""What lies on a prepared grid comes back to the place in the file where it belongs."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from spadnet.data.image import Image, orient, restore_axes
from spadnet.data.inputs import Item
from spadnet.data.io import read_image, write_like
from spadnet.data.paste import paste_back
from spadnet.data.prepare_folder import prepare_store
from spadnet.data.prepare_item import Settings
from spadnet.data.preprocess import bound_in_plane, crop_image, prepare, resize
from spadnet.data.store import open_volume

SIZE = (44, 12, 52)  # i, j, k of the file; j has the odd spacing
SPACING = (0.7, 5.0, 0.7)


def rotation() -> np.ndarray:
    """Oblique: turned by 20 and 15 degrees about two axes."""
    a, b = np.radians(20), np.radians(15)
    about_z = [[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]]
    about_x = [[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]]
    return np.array(about_z) @ np.array(about_x)


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    """An ellipsoid off the centre in an oblique scan with coronal slices, one axis reversed."""
    i, j, k = np.indices(SIZE)
    inside = ((i - 16) / 9) ** 2 + ((j - 7) / 3) ** 2 + ((k - 30) / 12) ** 2 < 1
    voxels = np.where(inside, 100 + i + 3 * j + 2 * k, 0).astype(np.int16)
    affine = np.eye(4)
    affine[:3, :3] = rotation() @ np.diag([-SPACING[0], SPACING[1], SPACING[2]])
    affine[:3, 3] = (12.5, -40.25, 7.0)
    nib.save(nib.Nifti1Image(voxels, affine), tmp_path / "scan.nii.gz")
    return tmp_path / "scan.nii.gz"


def box_of(mask: np.ndarray) -> tuple[slice, slice, slice]:
    found = [(int(places.min()), int(places.max()) + 1) for places in np.nonzero(mask)]
    first, second, third = (slice(low, high) for low, high in found)
    return first, second, third


def overlap(first: np.ndarray, second: np.ndarray) -> float:
    return float(2 * (first & second).sum() / (first.sum() + second.sum()))


def test_mask_of_a_cropped_scan_returns_voxel_for_voxel(scan: Path, tmp_path: Path) -> None:
    image = read_image(scan)
    assert image.axes.order != (0, 1, 2)
    assert any(image.axes.flips)
    prepared = prepare(image)
    assert prepared.array.shape[1:] != image.array.shape[1:]
    labels = (prepared.array[0] * 4).astype(np.uint8) + 1
    back = paste_back(labels, prepared)
    assert back.dtype == np.uint8
    assert back.shape == image.array.shape[1:]
    write_like(back, image, tmp_path / "mask.nii.gz")
    source, mask = nib.load(scan), nib.load(tmp_path / "mask.nii.gz")
    np.testing.assert_array_equal(mask.affine, source.affine)
    expected, found = np.asarray(source.dataobj), np.asarray(mask.dataobj)
    box = np.nonzero(found)
    assert [int(a.min()) for a in box] == [int(a.min()) for a in np.nonzero(expected)]
    assert [int(a.max()) for a in box] == [int(a.max()) for a in np.nonzero(expected)]
    window = expected[found > 1]  # brighter labels lie where the scan is brighter
    assert window.min() > expected[(found == 1) & (expected > 0)].max()


@pytest.mark.parametrize("bound", [13, 8])
def test_mask_of_a_shrunken_scan_returns_to_its_place(scan: Path, bound: int) -> None:
    image = read_image(scan)
    truth = image.array[0] > 0
    mask = image._replace(array=truth[None].astype(np.float32))
    prepared = bound_in_plane(crop_image(mask, box_of(truth)), bound)
    assert min(prepared.array.shape[2:]) == bound
    back = paste_back(prepared.array[0] > 0.5, prepared)
    assert back.dtype == bool
    assert overlap(back, truth) > 0.85
    centres = [np.array(np.nonzero(mask)).mean(axis=1) for mask in (back, truth)]
    np.testing.assert_allclose(centres[0], centres[1], atol=0.5)
    smooth = paste_back(prepared.array, prepared, interpolation="linear")
    assert smooth.shape == image.array.shape
    assert overlap(smooth[0] > 0.5, truth) >= overlap(back, truth) - 0.01


def test_linear_values_lie_on_the_line(scan: Path) -> None:
    image = read_image(scan)
    depth, height, width = image.array.shape[1:]
    ramp = np.broadcast_to(np.arange(width, dtype=np.float32), (1, depth, height, width)).copy()
    small = resize(image._replace(array=ramp), (depth, height, width // 2))
    back = paste_back(small.array, small, interpolation="linear")
    np.testing.assert_allclose(back[..., 4:-4], ramp[..., 4:-4], atol=1e-3)


def test_record_of_a_store_knows_the_way_back(scan: Path, tmp_path: Path) -> None:
    item = Item(scan, "scan", "mine")
    (record,) = prepare_store([item], tmp_path / "s", settings=Settings(), workers=0).records
    stored = open_volume(tmp_path / "s" / record.file).read_all().numpy()
    image = read_image(scan)
    prepared = record.as_image(stored)
    assert prepared[1:4] == prepare(image)[1:4]
    back = paste_back(stored[0] > 0, prepared)
    whole = restore_axes(back, prepared.axes)
    assert whole.shape == np.asarray(nib.load(scan).dataobj).T.shape
    voxels = np.asarray(nib.load(scan).dataobj).T
    np.testing.assert_array_equal(whole, voxels > record.window[0])


def test_slices_turned_another_way_return_too(scan: Path) -> None:
    image = read_image(scan)
    even = image.axes.grid._replace(spacing=(1.0, 1.0, 1.0))
    voxels = restore_axes(image.array, image.axes)
    for along in (0, 1, 2):
        turned: Image = orient(voxels, even, source="x", along=along)
        assert abs(turned.direction[0][along]) > 0.9
        prepared = prepare(turned)
        back = restore_axes(paste_back(prepared.array > 0, prepared), turned.axes)
        assert overlap(back, voxels > 0) > 0.98


def test_picture_returns(tmp_path: Path) -> None:
    pixels = np.zeros((40, 60), np.uint8)
    pixels[8:24, 20:50] = 200
    nib.save(nib.Nifti1Image(pixels[..., None], np.eye(4)), tmp_path / "flat.nii")
    image = read_image(tmp_path / "flat.nii")
    prepared = prepare(image, max_in_plane=8)
    assert prepared.array.shape == (1, 1, *sorted((8, 15), reverse=prepared.array.shape[2] > 8))
    back = paste_back(prepared.array > 0.5, prepared, fill=False)
    np.testing.assert_array_equal(back, image.array > 0)


def test_wrong_values_are_refused(scan: Path) -> None:
    prepared = prepare(read_image(scan))
    with pytest.raises(ValueError, match="do not lie on"):
        paste_back(np.zeros((3, 3, 3)), prepared)
    with pytest.raises(ValueError, match="'nearest' or 'linear', got 'cubic'"):
        paste_back(prepared.array, prepared, interpolation="cubic")  # type: ignore[arg-type]
