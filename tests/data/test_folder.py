"""A user's folder: everything in it is found and read, or it says what is wrong."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hostile_files
import nibabel as nib
import numpy as np
import PIL.Image
import pytest

from spadnet.data.folder import find_images, load_folder
from spadnet.data.globs import find_glob
from spadnet.data.io import ImageError
from spadnet.spacing import Spacing


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / ".hidden").mkdir()
    volume = rng.integers(0, 900, (20, 21, 8)).astype(np.int16)
    affine = np.diag([-1.0, -1.0, 4.0, 1.0])
    nib.save(nib.Nifti1Image(volume, affine), tmp_path / "a" / "scan.nii.gz")
    series = rng.random((10, 11, 8, 3)).astype(np.float32)
    nib.save(nib.Nifti1Image(series, affine), tmp_path / "a" / "b" / "cine.nii")
    pixels = rng.integers(0, 255, (30, 40, 3), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save(tmp_path / "a" / "EYE.PNG")
    PIL.Image.fromarray(pixels).save(tmp_path / ".hidden" / "no.png")
    PIL.Image.fromarray(pixels).save(tmp_path / "a" / "._EYE.png")
    (tmp_path / "notes.txt").write_text("hello")
    return tmp_path


def test_everything_is_found_once_in_order(folder: Path) -> None:
    names = [str(path.relative_to(folder)) for path in find_images(folder)]
    assert names == ["a/EYE.PNG", "a/b/cine.nii", "a/scan.nii.gz"]


def test_frames_of_a_series_share_their_weight(folder: Path) -> None:
    volumes = load_folder(folder)
    assert [volume.weight for volume in volumes] == [1.0, 5 / 9, 5 / 9, 5 / 9, 1.0]
    assert volumes[0].spacing == Spacing.planar()
    assert volumes[-1].spacing == Spacing(4, 1, 1)
    assert {volume.image.shape[0] for volume in volumes} == {1}
    assert all(v.image.min() >= 0 and v.image.max() <= 1 for v in volumes)


def test_bad_file_ends_it_or_is_left_out_with_its_reason(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "bad.nii.gz").write_bytes(b"")
    with pytest.raises(ImageError, match=r"bad\.nii\.gz: the file is empty"):
        load_folder(folder)
    with caplog.at_level(logging.WARNING):
        assert len(load_folder(folder, on_error="skip")) == 5
    assert "bad.nii.gz: the file is empty" in caplog.text
    with pytest.raises(ValueError, match="'ignore'"):
        load_folder(folder, on_error="ignore")  # type: ignore[arg-type]


def test_folders_without_images_are_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no images in this folder"):
        load_folder(tmp_path)
    with pytest.raises(ImageError, match="no such folder"):
        load_folder(tmp_path / "absent")
    (tmp_path / "flat.png").write_bytes(b"")
    with pytest.raises(ImageError, match="not a folder"):
        load_folder(tmp_path / "flat.png")
    with pytest.raises(ImageError, match="none of its 1 images can be used"):
        load_folder(tmp_path, on_error="skip")


def test_pipe_that_has_something_to_say_is_no_image(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "a.nii").write_bytes(b"")
    pipe = os.open(tmp_path / "pipe", os.O_RDWR)  # so that nobody waits for the other end
    os.write(pipe, bytes(128) + b"DICM" + bytes(9))
    assert find_images(tmp_path) == [tmp_path / "a.nii"]
    os.close(pipe)


def test_folder_that_cannot_be_listed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "locked").mkdir()
    (tmp_path / "a.nii").write_bytes(b"")
    scan, listing = os.scandir, os.listdir

    def refuse(real: Any) -> Any:
        def call(path: Any) -> Any:
            if str(path).endswith("locked"):
                raise PermissionError(13, "Permission denied", str(path))
            return real(path)

        return call

    monkeypatch.setattr(os, "scandir", refuse(scan))
    monkeypatch.setattr(os, "listdir", refuse(listing))
    with caplog.at_level(logging.WARNING):
        assert find_images(tmp_path) == [tmp_path / "a.nii"]
        assert find_glob(tmp_path, "*/*.nii") == []
    assert caplog.text.count("locked: permission denied; left out") == 2


def test_numpy_files_are_left_out_aloud(
    tmp_path: Path, write_nifti: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    path = write_nifti(np.arange(24, dtype=np.int16).reshape(2, 3, 4))
    np.save(path.parent / "beside.npy", np.zeros((2, 3, 4)))
    with caplog.at_level(logging.WARNING):
        assert find_images(path.parent) == [path]
    assert "1 NumPy files left out: they have no spacing" in caplog.text


def test_each_series_of_a_folder_has_its_whole_weight(tmp_path: Path) -> None:
    for name, series in (("a", "1.2.826.1"), ("b", "1.2.826.2")):
        (tmp_path / f"{name}.dcm").write_bytes(hostile_files.dicom(SeriesInstanceUID=series))
    assert [volume.weight for volume in load_folder(tmp_path)] == [1.0, 1.0]
    (tmp_path / "cut.dcm").write_bytes((tmp_path / "a.dcm").read_bytes()[:140])
    with pytest.raises(ImageError, match=r"cut\.dcm"):
        load_folder(tmp_path)
    assert len(load_folder(tmp_path, on_error="skip")) == 2
