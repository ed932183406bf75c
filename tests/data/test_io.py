"""Reading every kind of file, refusing bad ones with a reason, writing on the file's own grid."""

import gzip
import logging
import os
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import PIL.Image
import pytest
import SimpleITK as sitk  # noqa: N813, the name that its documentation uses

from spadnet.data.io import ImageError, read_frames, read_image, write_like
from spadnet.data.preprocess import crop_image
from spadnet.spacing import Spacing

WriteNifti = Callable[..., Path]
OBLIQUE = np.array(
    [[0.8, -0.36, 0.48, 5.0], [0.6, 0.48, -0.64, -7.0], [0.0, 0.8, 0.6, 11.0], [0, 0, 0, 1.0]]
)


def scaled(affine: np.ndarray, x: float, y: float, z: float) -> np.ndarray:
    return affine @ np.diag([x, y, z, 1.0])


def rgb(height: int = 6, width: int = 8, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (height, width, channels), dtype=np.uint8)


# --- reading right -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nrrd", "a.mha", "a.mhd"])
def test_volume_formats_agree(tmp_path: Path, ramp: np.ndarray, name: str) -> None:
    image = sitk.GetImageFromArray(ramp)
    image.SetSpacing((0.75, 0.75, 3.0))
    image.SetOrigin((1.0, 2.0, 3.0))
    sitk.WriteImage(image, str(tmp_path / name))
    read = read_image(tmp_path / name)
    assert (read.array[0] == ramp).all()
    assert read.array.dtype == np.int16
    assert read.spacing == (3.0, 0.75, 0.75)
    assert read.origin == (1.0, 2.0, 3.0)
    assert read.source == str(tmp_path / name)


def test_geometry_of_an_oblique_nifti_is_that_of_its_affine(
    write_nifti: WriteNifti, ramp: np.ndarray
) -> None:
    affine = scaled(OBLIQUE, 0.5, 0.5, 4.0)
    image = read_image(write_nifti(ramp, affine))
    assert image.spacing == pytest.approx((4.0, 0.5, 0.5))
    for voxel in ((0, 0, 0), (3, 2, 1), (7, 6, 5)):
        value = image.array[(0, *voxel)]
        at = np.array([*np.argwhere(ramp == value)[0], 1.0])
        right, anterior, superior = (affine @ at)[:3]
        position = np.array(image.origin)
        for axis in range(3):
            position += image.spacing[axis] * voxel[axis] * np.array(image.direction[axis])
        np.testing.assert_allclose(position, (-right, -anterior, superior), atol=1e-4)


def test_spacing_is_the_affine_s_even_where_the_header_differs(
    write_nifti: WriteNifti, ramp: np.ndarray
) -> None:
    path = write_nifti(ramp, np.diag([2.0, 2.0, 2.0, 1.0]), "a.nii")
    image = nib.load(path)
    image.set_sform(np.diag([2.0, 2.0, 2.0, 1.0]), code=1)
    nib.save(image, path)
    data = bytearray(path.read_bytes())
    data[80:92] = np.ones(3, "<f4").tobytes()
    path.write_bytes(data)
    assert read_image(path).spacing == (2.0, 2.0, 2.0)


def test_nifti_and_mgz_agree(tmp_path: Path, ramp: np.ndarray) -> None:
    affine = scaled(OBLIQUE, 1.0, 1.0, 1.0)
    nib.save(nib.Nifti1Image(ramp, affine), tmp_path / "a.nii.gz")
    nib.save(nib.MGHImage(ramp, affine), tmp_path / "a.mgz")
    first, second = read_image(tmp_path / "a.nii.gz"), read_image(tmp_path / "a.mgz")
    assert (first.array == second.array).all()
    np.testing.assert_allclose(first.direction, second.direction, atol=1e-6)
    np.testing.assert_allclose(first.origin, second.origin, atol=1e-4)


def test_sheared_nifti_is_read_as_the_nearest_rotation_and_says_so(
    write_nifti: WriteNifti, ramp: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    affine[0, 2] = 0.5
    with caplog.at_level(logging.WARNING):
        image = read_image(write_nifti(ramp, affine))
    assert "sheared by" in caplog.text
    assert image.spacing.z == pytest.approx(np.hypot(2.0, 0.5))
    direction = np.array(image.direction)
    np.testing.assert_allclose(direction @ direction.T, np.eye(3), atol=1e-12)


def test_scaled_direction_of_mha_counts_once(tmp_path: Path, ramp: np.ndarray) -> None:
    path = tmp_path / "a.mha"
    image = sitk.GetImageFromArray(ramp)
    image.SetSpacing((2.0, 2.0, 3.0))
    sitk.WriteImage(image, str(path))
    data = path.read_bytes().replace(
        b"TransformMatrix = 1 0 0 0 1 0 0 0 1", b"TransformMatrix = 2 0 0 0 2 0 0 0 3"
    )
    path.write_bytes(data)
    assert read_image(path).spacing == (3.0, 2.0, 2.0)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "L", "P", "I;16"])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_pictures(tmp_path: Path, mode: str, suffix: str) -> None:
    grey, colour = rgb()[..., 0], rgb(channels=4)
    colour[..., 3] = 255
    pixels = {
        "RGB": colour[..., :3],
        "RGBA": colour,
        "LA": np.stack([grey, np.full_like(grey, 255)], axis=-1),
        "L": grey,
        "P": grey,
        "I;16": grey.astype(np.uint16) * 257,
    }[mode]
    picture = PIL.Image.fromarray(pixels if mode != "P" else colour[..., :3])
    picture = picture.convert("P") if mode == "P" else picture
    picture.save(tmp_path / f"a{suffix}")
    image = read_image(tmp_path / f"a{suffix}")
    assert image.array.shape == (3 if mode in ("RGB", "RGBA", "P") else 1, 1, 6, 8)
    assert image.array.dtype == (np.uint16 if mode == "I;16" else np.uint8)
    assert image.spacing == Spacing.planar()
    if mode != "P":
        shown = pixels[..., :3] if mode.startswith("RGB") else pixels.reshape(6, 8, -1)[..., :1]
        assert (image.array[:, 0] == np.moveaxis(shown, -1, 0)).all()


def test_transparency_is_dropped_with_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    PIL.Image.fromarray(rgb(channels=4)).save(tmp_path / "a.png")
    with caplog.at_level(logging.WARNING):
        assert read_image(tmp_path / "a.png").array.shape[0] == 3
    assert "transparency" in caplog.text


def test_pages_of_a_tiff_are_a_volume_only_with_a_spacing(tmp_path: Path) -> None:
    pages = [PIL.Image.fromarray(rgb()[..., 0]) for _ in range(3)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(ImageError, match="3 pages"):
        read_image(tmp_path / "a.tif")
    assert read_image(tmp_path / "a.tif", spacing=(4, 1, 1)).array.shape == (1, 3, 6, 8)


def test_series_has_one_image_per_frame(write_nifti: WriteNifti) -> None:
    array = np.random.default_rng(0).random((4, 5, 6, 3)).astype(np.float32)
    path = write_nifti(array, np.diag([-1.0, -1.0, 3.0, 1.0]))
    with pytest.raises(ImageError, match="series of 3 images"):
        read_image(path)
    frames = read_frames(path)
    assert [frame.source for frame in frames] == [f"{path}[{i}]" for i in range(3)]
    for index, frame in enumerate(frames):
        assert (frame.array[0] == array[..., index].T).all()
        assert frame.spacing == (3.0, 1.0, 1.0)


def test_vector_image_becomes_channels(write_nifti: WriteNifti) -> None:
    array = np.random.default_rng(0).random((4, 5, 6, 1, 3)).astype(np.float32)
    assert read_image(write_nifti(array)).array.shape == (3, 6, 5, 4)
    colour = np.zeros((4, 5, 6), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    colour["G"] = 7
    image = read_image(write_nifti(colour, name="rgb.nii"))
    assert image.array.shape == (3, 6, 5, 4)
    assert (image.array[1] == 7).all()


def test_one_slice_is_a_2d_image(write_nifti: WriteNifti) -> None:
    image = read_image(write_nifti(np.arange(20, dtype=np.int16).reshape(4, 5, 1)))
    assert image.array.shape == (1, 1, 5, 4)
    assert image.spacing.is_planar
    flat = read_image(write_nifti(np.arange(20, dtype=np.int16).reshape(4, 5), name="flat.nii"))
    assert flat.array.shape == (1, 1, 5, 4)
    assert flat.spacing.is_planar


def test_numpy_files_need_a_spacing(tmp_path: Path) -> None:
    volume = np.random.default_rng(0).random((3, 4, 5))
    np.save(tmp_path / "a.npy", volume)
    np.savez(tmp_path / "a.npz", volume)
    np.savez(tmp_path / "two.npz", volume, volume)
    with pytest.raises(ImageError, match="give spacing"):
        read_image(tmp_path / "a.npy")
    with pytest.raises(ImageError, match="2 arrays in it"):
        read_image(tmp_path / "two.npz", spacing=(1, 1, 1))
    for name in ("a.npy", "a.npz"):
        image = read_image(tmp_path / name, spacing=(1.0, 1.0, 5.0))
        assert image.spacing == (5.0, 1.0, 1.0)
        assert image.array.shape == (1, 5, 3, 4)
    np.save(tmp_path / "rgb.npy", rgb())
    assert read_image(tmp_path / "rgb.npy", spacing=Spacing.planar()).array.shape == (3, 1, 6, 8)
    np.save(tmp_path / "big_endian.npy", volume.astype(">f4"))
    assert read_image(tmp_path / "big_endian.npy", spacing=(1, 1, 1)).array.dtype.isnative


def test_given_spacing_replaces_the_file_s(write_nifti: WriteNifti, ramp: np.ndarray) -> None:
    assert read_image(write_nifti(ramp), spacing=(6.0, 1.5, 1.5)).spacing == (6.0, 1.5, 1.5)
    with pytest.raises(ImageError, match="three values"):
        read_image(write_nifti(ramp), spacing=(1.0, 1.0))


def test_names_with_spaces_and_letters_of_any_script(
    write_nifti: WriteNifti, ramp: np.ndarray
) -> None:
    assert read_image(write_nifti(ramp, name="Schädel 頭 1.nii.gz")).array.size == ramp.size


# --- refusing with a reason ----------------------------------------------------------------------


def corrupt_files(folder: Path) -> dict[str, str]:
    """Write bad files; return the reason that each must be given."""
    rng = np.random.default_rng(0)
    volume = rng.integers(0, 1000, (20, 21, 22)).astype(np.int16)
    nib.save(nib.Nifti1Image(volume, np.eye(4)), folder / "good.nii.gz")
    packed = (folder / "good.nii.gz").read_bytes()
    plain = gzip.decompress(packed)
    sitk.WriteImage(sitk.GetImageFromArray(volume), str(folder / "good.nrrd"), True)
    sitk.WriteImage(sitk.GetImageFromArray(volume), str(folder / "good.mha"))
    PIL.Image.fromarray(rgb(64, 64)).save(folder / "good.png")
    PIL.Image.fromarray(rgb(64, 64)).save(folder / "good.jpg")
    nib.save(nib.MGHImage(volume, np.eye(4)), folder / "good.mgz")
    np.save(folder / "good.npy", volume)

    def header(at: int, value: np.ndarray) -> bytes:
        data = bytearray(plain)
        data[at : at + value.nbytes] = value.tobytes()
        return bytes(data)

    flipped = bytearray(packed)
    flipped[len(packed) // 2] ^= 0xFF
    files = {
        "empty.nii.gz": (b"", "empty"),
        "empty.png": (b"", "empty"),
        "text.nii.gz": (b"not an image at all\n" * 50, "not an image"),
        "text.nii": (b"not an image at all\n" * 50, "not an image"),
        "text.png": (b"not an image at all\n" * 50, "not an image"),
        "text.dcm": (b"not an image at all\n" * 50, "DICOM"),
        "text.npy": (b"not an image at all\n" * 50, "not a usable NumPy"),
        "cut.nii.gz": (packed[: len(packed) // 2], "truncated"),
        "cut_checksum.nii.gz": (packed[:-4], "truncated"),
        "flipped.nii.gz": (bytes(flipped), "truncated or damaged"),
        "cut.nii": (plain[: len(plain) // 2], "truncated: 9416 of"),
        "cut_header.nii": (plain[:200], "not an image"),
        "short_but_packed.nii.gz": (gzip.compress(plain[:2000]), "truncated"),
        "huge.nii": (header(42, np.full(3, 30000, "<i2")), "truncated"),
        "huge.nii.gz": (gzip.compress(header(42, np.full(3, 30000, "<i2"))), "truncated"),
        "zero_axis.nii": (header(42, np.zeros(1, "<i2")), "without voxels"),
        "negative_axis.nii": (header(42, np.full(1, -5, "<i2")), "without voxels"),
        "cut.nrrd": ((folder / "good.nrrd").read_bytes()[:-2000], "expected"),
        "cut.mha": ((folder / "good.mha").read_bytes()[:-2000], "truncated"),
        "cut.png": ((folder / "good.png").read_bytes()[:-2000], "truncated"),
        "cut.jpg": ((folder / "good.jpg").read_bytes()[:-200], "truncated"),
        "cut.mgz": ((folder / "good.mgz").read_bytes()[:-2000], "truncated"),
        "cut.npy": ((folder / "good.npy").read_bytes()[:-2000], "not a usable NumPy"),
    }
    no_sform = {"sform": header(254, np.zeros(1, "<i2"))}
    for name, value in (("zero", 0.0), ("negative", -1.0), ("nan", np.nan), ("inf", np.inf)):
        data = bytearray(no_sform["sform"])
        data[80:84] = np.array(value, "<f4").tobytes()
        files[f"spacing_{name}.nii"] = (bytes(data), "spacing")
    for name, (content, _) in files.items():
        (folder / name).write_bytes(content)
    reasons = {name: reason for name, (_, reason) in files.items()}
    (folder / "folder").mkdir()
    (folder / "folder" / "note.txt").write_text("hello")
    (folder / "loop.nii").symlink_to("loop.nii")
    os.mkfifo(folder / "pipe.nii")
    reasons |= {
        "folder": "holds no DICOM",
        "absent.nii.gz": "no such file",
        "loop.nii": "symbolic links",
        "pipe.nii": "not a regular file",
        "a" * 300 + ".nii": "too long",
    }
    arrays = {
        "all_nan.nii": (np.full((4, 4, 4), np.nan, np.float32), "all voxels are NaN"),
        "three_nan.nii": (np.where(np.arange(64) < 3, np.nan, 1.0).reshape(4, 4, 4), "3 of 64"),
        "one_inf.nii": (np.where(np.arange(64) < 1, np.inf, 1.0).reshape(4, 4, 4), "1 of 64"),
        "complex.nii": (np.ones((4, 4, 4), np.complex64), "complex64"),
        "line.nii": (np.ones((8, 1, 1), np.int16), "two single-voxel axes"),
        "line_2d.nii": (np.ones((8, 1), np.int16), "two single-voxel axes"),
    }
    for name, (array, reason) in arrays.items():
        nib.save(nib.Nifti1Image(array, np.eye(4)), folder / name)
        reasons[name] = reason
    return reasons


def test_bad_files_get_one_line_that_names_file_and_reason(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, reason in corrupt_files(tmp_path).items():
        spacing = (1.0, 1.0, 1.0) if name.endswith(".npy") else None
        with pytest.raises(ImageError) as caught:
            read_frames(tmp_path / name, spacing=spacing)
        message = str(caught.value)
        assert message.startswith(f"{tmp_path / name}: "), message
        assert reason in message
        assert "\n" not in message
        assert len(message) < len(str(tmp_path / name)) + 300
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == ""


def test_good_files_beside_them_are_read(tmp_path: Path) -> None:
    corrupt_files(tmp_path)
    for path in tmp_path.glob("good.*"):
        spacing = (1.0, 1.0, 1.0) if path.suffix == ".npy" else None
        assert read_image(path, spacing=spacing).array.min() >= 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file_is_named(write_nifti: WriteNifti, ramp: np.ndarray) -> None:
    path = write_nifti(ramp)
    path.chmod(0)
    with pytest.raises(ImageError, match="permission denied"):
        read_image(path)


# --- writing -------------------------------------------------------------------------------------


GEOMETRY = ("sform_code", "qform_code", "srow_x", "srow_y", "srow_z", "quatern_b", "quatern_c")
GEOMETRY += ("quatern_d", "qoffset_x", "qoffset_y", "qoffset_z", "xyzt_units")


@pytest.mark.parametrize(
    ("sform", "qform"), [(2, 0), (0, 1), (4, 3), (0, 0)], ids=["sform", "qform", "both", "neither"]
)
@pytest.mark.parametrize("sheared", [False, True])
def test_nifti_header_keeps_the_bytes_of_its_geometry(
    tmp_path: Path, ramp: np.ndarray, sform: int, qform: int, sheared: bool
) -> None:
    image = nib.Nifti1Image(np.transpose(ramp), None)
    affine = scaled(OBLIQUE, 0.7, 0.8, 3.3)
    affine[0, 1] += 0.2 * sheared
    image.header.set_sform(affine, code=sform)
    image.header.set_qform(scaled(OBLIQUE, 0.7, 0.8, 3.3), code=qform)
    image.header["pixdim"][1:4] = (0.71, 0.81, 3.31)  # not quite what the sform says
    image.header.set_xyzt_units("micron")
    nib.save(image, tmp_path / "a.nii")
    read = read_image(tmp_path / "a.nii")
    write_like(read.array[0] > 9, read, tmp_path / "mask.nii.gz")
    before, after = nib.load(tmp_path / "a.nii").header, nib.load(tmp_path / "mask.nii.gz").header
    for field in GEOMETRY:
        assert after[field].tobytes() == before[field].tobytes(), field
    assert after["pixdim"][:4].tobytes() == before["pixdim"][:4].tobytes()
    assert after["dim"].tobytes() == before["dim"].tobytes()
    given = read_image(tmp_path / "a.nii", spacing=(2.0, 1.0, 1.0))
    write_like(given.array[0] > 9, given, tmp_path / "given.nii")
    assert read_image(tmp_path / "given.nii").spacing == pytest.approx(given.spacing)


@pytest.mark.parametrize("name", ["mask.nii.gz", "mask.nii", "mask.nrrd", "mask.mha"])
@pytest.mark.parametrize(
    "affine",
    [
        np.diag([1.0, 1.0, 1.0, 1.0]),
        scaled(OBLIQUE, 0.7, 0.7, 5.0),
        scaled(OBLIQUE, 3.0, 0.9, 0.9),
        scaled(np.diag([-1.0, 1.0, -1.0, 1.0]), 1.0, 4.0, 1.0),
    ],
)
def test_mask_lands_on_the_input_s_own_grid(
    tmp_path: Path, write_nifti: WriteNifti, ramp: np.ndarray, name: str, affine: np.ndarray
) -> None:
    path = write_nifti(ramp, affine)
    image = read_image(path)
    write_like(image.array[0] % 5 == 0, image, tmp_path / name)
    original, written = sitk.ReadImage(str(path)), sitk.ReadImage(str(tmp_path / name))
    assert (sitk.GetArrayFromImage(written) == (sitk.GetArrayFromImage(original) % 5 == 0)).all()
    np.testing.assert_allclose(written.GetSpacing(), original.GetSpacing(), rtol=1e-6)
    np.testing.assert_allclose(written.GetOrigin(), original.GetOrigin(), atol=1e-5)
    np.testing.assert_allclose(written.GetDirection(), original.GetDirection(), atol=1e-6)
    if name.startswith("mask.nii"):
        np.testing.assert_array_equal(nib.load(tmp_path / name).affine, nib.load(path).affine)


def test_mask_of_a_sheared_volume_keeps_the_shear(
    tmp_path: Path, write_nifti: WriteNifti, ramp: np.ndarray
) -> None:
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    affine[0, 2] = 0.5
    image = read_image(write_nifti(ramp, affine))
    write_like(image.array, image, tmp_path / "mask.nii.gz")
    written = nib.load(tmp_path / "mask.nii.gz")
    np.testing.assert_allclose(written.affine, affine, atol=1e-6)
    assert (np.asanyarray(written.dataobj) == ramp).all()
    with pytest.raises(ImageError, match="only NIfTI"):
        write_like(image.array, image, tmp_path / "mask.nrrd")


def test_mask_of_a_picture(tmp_path: Path) -> None:
    PIL.Image.fromarray(rgb()).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    write_like(image.array[:1] > 100, image, tmp_path / "mask.png")
    assert (np.array(PIL.Image.open(tmp_path / "mask.png")) == (rgb()[..., 0] > 100)).all()


def test_float16_and_channels_can_be_written(
    tmp_path: Path, write_nifti: WriteNifti, ramp: np.ndarray
) -> None:
    image = read_image(write_nifti(ramp))
    features = np.random.default_rng(0).random((3, *image.array.shape[1:])).astype(np.float16)
    for name in ("a.nii.gz", "a.nrrd"):
        write_like(features, image, tmp_path / name)
        np.testing.assert_allclose(read_image(tmp_path / name).array, features)


@pytest.mark.parametrize("dtype", [np.int64, np.uint64, np.int8, np.float64])
def test_any_number_type_can_be_written(
    tmp_path: Path, write_nifti: WriteNifti, ramp: np.ndarray, dtype: type
) -> None:
    image = read_image(write_nifti(ramp))
    for name in ("a.nii.gz", "a.mha"):
        write_like((image.array[0] % 100).astype(dtype), image, tmp_path / name)
        assert (read_image(tmp_path / name).array == image.array % 100).all()


def test_full_disk_is_named_and_leaves_the_old_file(
    tmp_path: Path, write_nifti: WriteNifti, ramp: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = read_image(write_nifti(ramp))
    target = tmp_path / "mask.nii.gz"
    target.write_bytes(b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(ImageError, match=r"mask\.nii\.gz: cannot be written: .*No space left"):
        write_like(image.array, image, target)
    assert target.read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["image.nii.gz", "mask.nii.gz"]


def test_writing_leaves_nothing_behind_when_it_fails(
    tmp_path: Path, write_nifti: WriteNifti, ramp: np.ndarray
) -> None:
    image = read_image(write_nifti(ramp))
    before = sorted(tmp_path.iterdir())
    for bad in (
        tmp_path / "none" / "a.nii.gz",
        tmp_path / "a.dcm",
        tmp_path / "a.mhd",
        tmp_path / "a.xyz",
    ):
        with pytest.raises(ImageError, match=bad.name):
            write_like(image.array, image, bad)
    with pytest.raises(ValueError, match="does not lie on the grid"):
        write_like(image.array[:, :-1], image, tmp_path / "a.nii.gz")
    cropped = crop_image(image, (slice(0, 4), slice(0, 4), slice(0, 4)))
    with pytest.raises(ValueError, match="as read"):
        write_like(cropped.array, cropped, tmp_path / "a.nii.gz")
    assert sorted(tmp_path.iterdir()) == before
