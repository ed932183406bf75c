"""DICOM: series in order or refused with a reason, films, colour, inverted greys."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from spadnet.data.dicom import split_series
from spadnet.data.io import ImageError, read_frames, read_image

CT_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
SERIES = generate_uid()


def write_dicom(path: Path, pixels: np.ndarray, **tags: object) -> None:
    """Write one DICOM file; ``tags`` replace or, where None, remove elements."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CT_STORAGE
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    colour = pixels.shape[-1] == 3
    frames = pixels.shape[0] if pixels.ndim == (4 if colour else 3) else 1
    values: dict[str, object] = {
        "SOPClassUID": CT_STORAGE,
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "SeriesInstanceUID": SERIES,
        "StudyInstanceUID": SERIES,
        "Modality": "CT",
        "Rows": pixels.shape[-3 if colour else -2],
        "Columns": pixels.shape[-2 if colour else -1],
        "SamplesPerPixel": 3 if colour else 1,
        "PlanarConfiguration": 0 if colour else None,
        "PhotometricInterpretation": "RGB" if colour else "MONOCHROME2",
        "BitsAllocated": 8 * pixels.itemsize,
        "BitsStored": 8 * pixels.itemsize,
        "HighBit": 8 * pixels.itemsize - 1,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
        "NumberOfFrames": frames if frames > 1 else None,
        "PixelSpacing": [0.7, 0.6],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "ImagePositionPatient": [0, 0, 0],
        "PixelData": pixels.tobytes(),
    }
    for name, value in {**values, **tags}.items():
        if value is not None:
            setattr(data, name, value)
    data.save_as(path, enforce_file_format=True)


def write_series(folder: Path, heights: list[float], **tags: object) -> np.ndarray:
    """Write slices at these heights, in file names of a random order; return them sorted."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    slices = rng.integers(0, 500, (len(heights), 5, 6)).astype(np.int16)
    names = rng.permutation(len(heights))
    for name, pixels, height in zip(names, slices, heights, strict=True):
        write_dicom(
            folder / f"{name}.dcm", pixels, **{"ImagePositionPatient": [0, 0, height]} | tags
        )
    return slices[np.argsort(heights)]


def test_series_is_sorted_by_place(tmp_path: Path) -> None:
    slices = write_series(tmp_path / "ct", [0.0, 3.0, 6.0, 9.0])
    image = read_image(tmp_path / "ct")
    assert (image.array[0] == slices).all()
    assert image.spacing == pytest.approx((3.0, 0.7, 0.6))
    assert image.modality == "CT"
    assert image.direction == ((0, 0, 1), (0, 1, 0), (1, 0, 0))


def test_rescale_makes_hounsfield_units(tmp_path: Path) -> None:
    slices = write_series(
        tmp_path / "ct", [0.0, 3.0, 6.0], RescaleSlope="2", RescaleIntercept="-1024"
    )
    assert (read_image(tmp_path / "ct").array[0] == slices * 2 - 1024).all()


def test_single_file_is_a_2d_image_with_its_pixel_size(tmp_path: Path) -> None:
    pixels = np.arange(30, dtype=np.uint16).reshape(5, 6)
    write_dicom(tmp_path / "a.dcm", pixels, Modality="DX")
    image = read_image(tmp_path / "a.dcm")
    assert (image.array[0, 0] == pixels).all()
    assert image.spacing.is_planar
    assert image.spacing[1:] == pytest.approx((0.7, 0.6))
    assert image.modality == "DX"


def test_name_needs_no_ending(tmp_path: Path) -> None:
    write_dicom(tmp_path / "IM0001", np.arange(30, dtype=np.uint16).reshape(5, 6))
    assert read_image(tmp_path / "IM0001").array.shape == (1, 1, 5, 6)


def test_inverted_grey_is_turned_back(tmp_path: Path) -> None:
    pixels = np.arange(30, dtype=np.uint16).reshape(5, 6)
    write_dicom(tmp_path / "a.dcm", pixels, PhotometricInterpretation="MONOCHROME1")
    assert (read_image(tmp_path / "a.dcm").array[0, 0] == 65535 - pixels).all()


@pytest.mark.parametrize("planar", [0, 1])
def test_colour(tmp_path: Path, planar: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (5, 6, 3), dtype=np.uint8)
    data = pixels if planar == 0 else np.moveaxis(pixels, -1, 0)
    write_dicom(tmp_path / "a.dcm", pixels, PlanarConfiguration=planar, PixelData=data.tobytes())
    assert (read_image(tmp_path / "a.dcm").array[:, 0] == np.moveaxis(pixels, -1, 0)).all()


@pytest.mark.parametrize("colour", [False, True])
def test_film_is_a_series_of_2d_images(tmp_path: Path, colour: bool) -> None:
    shape = (4, 5, 6, 3) if colour else (4, 5, 6)
    pixels = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
    write_dicom(tmp_path / "a.dcm", pixels, Modality="US", ImagePositionPatient=None)
    frames = read_frames(tmp_path / "a.dcm")
    assert len(frames) == 4
    for frame, expected in zip(frames, pixels, strict=True):
        assert frame.spacing.is_planar
        shown = np.moveaxis(expected, -1, 0) if colour else expected[None]
        assert (frame.array[:, 0] == shown).all()
    with pytest.raises(ImageError, match="series of 4 images"):
        read_image(tmp_path / "a.dcm")


def test_several_series_in_a_folder_are_several_images(tmp_path: Path) -> None:
    write_series(tmp_path, [0.0, 1.0, 2.0])
    for index, height in enumerate((0.0, 5.0)):
        write_dicom(
            tmp_path / f"other{index}.dcm",
            np.zeros((5, 6), np.int16) + index,
            SeriesInstanceUID=generate_uid(entropy_srcs=["other"]),
            ImagePositionPatient=[0, 0, height],
        )
    (tmp_path / "notes.txt").write_text("not DICOM")
    frames = read_frames(tmp_path)
    assert sorted(frame.array.shape[1] for frame in frames) == [2, 3]


def test_series_of_a_folder_are_told_apart_whatever_their_state(tmp_path: Path) -> None:
    write_series(tmp_path / "one", [0.0, 1.0])
    (tmp_path / "one" / "notes.txt").write_text("not DICOM")
    assert split_series(tmp_path / "one") == [("", tmp_path / "one", None)]
    folder = tmp_path / "several"
    good, gap = "1.2.826.1", "1.2.826.2"
    write_series(folder, [0.0, 1.0, 2.0], SeriesInstanceUID=good)
    write_series(tmp_path / "gap", [0.0, 1.0, 5.0], SeriesInstanceUID=gap)
    for path in (tmp_path / "gap").iterdir():
        path.rename(folder / f"gap{path.name}")
    write_dicom(folder / "xray.dcm", np.zeros((5, 6), np.int16), SeriesInstanceUID="1.2.826.3")
    (folder / "cut.dcm").write_bytes((folder / "xray.dcm").read_bytes()[:136])
    parts = split_series(folder)
    assert [part.name for part in parts] == [good, gap, "cut.dcm", "xray.dcm"]
    whole, broken, cut, alone = parts
    (image,) = read_frames(whole.path, files=whole.files)
    assert image.array.shape[1] == 3
    assert (alone.path, alone.files) == (folder / "xray.dcm", None)
    with pytest.raises(ImageError, match="some are missing"):
        read_frames(broken.path, files=broken.files)
    with pytest.raises(ImageError, match=r"cut\.dcm"):
        read_frames(cut.path)


@pytest.mark.parametrize(
    ("heights", "reason"),
    [([0.0, 3.0, 9.0, 12.0], "some are missing"), ([0.0, 3.0, 3.0, 6.0], "duplicates")],
)
def test_gaps_and_duplicates_are_refused(tmp_path: Path, heights: list[float], reason: str) -> None:
    write_series(tmp_path / "ct", heights)
    with pytest.raises(ImageError, match=reason):
        read_image(tmp_path / "ct")


def test_localizer_inside_a_series_is_refused(tmp_path: Path) -> None:
    write_series(tmp_path, [0.0, 3.0, 6.0])
    write_dicom(
        tmp_path / "localizer.dcm",
        np.zeros((5, 6), np.int16),
        ImageOrientationPatient=[1, 0, 0, 0, 0, -1],
    )
    with pytest.raises(ImageError, match="more than one orientation"):
        read_image(tmp_path)


def test_slices_of_other_sizes_or_without_places_are_refused(tmp_path: Path) -> None:
    write_series(tmp_path / "a", [0.0, 3.0, 6.0])
    write_dicom(tmp_path / "a" / "x.dcm", np.zeros((4, 6), np.int16))
    with pytest.raises(ImageError, match="different sizes"):
        read_image(tmp_path / "a")
    write_series(tmp_path / "b", [0.0, 3.0, 6.0], ImagePositionPatient=None)
    with pytest.raises(ImageError, match="without a position"):
        read_image(tmp_path / "b")


def test_missing_and_cut_pixels_are_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pixels = np.arange(3000, dtype=np.uint16).reshape(50, 60)
    write_dicom(tmp_path / "none.dcm", pixels, PixelData=None)
    write_dicom(tmp_path / "a.dcm", pixels)
    (tmp_path / "cut.dcm").write_bytes((tmp_path / "a.dcm").read_bytes()[:-2000])
    (tmp_path / "head.dcm").write_bytes((tmp_path / "a.dcm").read_bytes()[:200])
    report = pydicom.dcmread(tmp_path / "a.dcm")
    for tag in ("Rows", "Columns", "PixelData"):
        delattr(report, tag)
    report.save_as(tmp_path / "report.dcm")
    for name in ("none", "cut", "head", "report"):
        with pytest.raises(ImageError, match=f"{name}.dcm: ") as caught:
            read_image(tmp_path / f"{name}.dcm")
        assert "\n" not in str(caught.value)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")
