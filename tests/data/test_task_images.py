"""Images of a task and their label maps: on one grid, of known values, or refused by name."""

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from spadnet.data.image import ImageError
from spadnet.data.task_images import CaseReader, Preparation, read_cases, read_channels
from spadnet.data.tasks import Case


def nifti(
    path: Path, array: np.ndarray, *, spacing: tuple[float, ...] = (1, 1, 1), shift: float = 0
) -> Path:
    affine = np.diag([*spacing, 1.0])
    affine[0, 3] = shift
    nib.save(nib.Nifti1Image(array, affine), path)  # type: ignore[no-untyped-call]
    return path


def blob(*size: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 1000, size).astype(np.int16)


@pytest.fixture
def pair(tmp_path: Path) -> Any:
    """Write an image and its label map, which marks the bright voxels."""

    def write(name: str = "a", *, label: np.ndarray | None = None, **geometry: Any) -> Case:
        array = blob(12, 14, 16)
        image = nifti(tmp_path / f"{name}.nii.gz", array)
        values = (array > 500).astype(np.uint8) if label is None else label
        mask = nifti(tmp_path / f"{name}_mask.nii.gz", values, **geometry)
        return Case(name, (image,), mask, "train")

    return write


def reader(**rule: Any) -> CaseReader:
    return CaseReader(Preparation(**rule), num_classes=2)


def test_label_follows_its_image(pair: Any) -> None:
    found = reader(percentiles=(0, 100)).read(pair())
    assert found.image.shape == (1, 16, 14, 12)
    assert found.degree == 0
    assert ((found.image[0].float() > 0.502) == (found.target == 1)).float().mean() > 0.99


def test_spacing_decides_the_degree_and_both_are_resampled(pair: Any) -> None:
    found = reader(spacing=(4.0, 1.0, 1.0)).read(pair())
    assert found.image.shape[1:] == found.target.shape == (4, 14, 12)
    assert (found.degree, found.spacing.z) == (2, 4.0)


def test_sizes_follow_the_degree(pair: Any, tmp_path: Path) -> None:
    assert reader(size=(32, 32, 32)).read(pair()).image.shape[1:] == (32, 32, 32)
    thick = nifti(tmp_path / "thick.nii.gz", blob(32, 32, 8), spacing=(1, 1, 4))
    case = Case("thick", (thick,), (1.0,), "train")
    found = reader(size=(32, 32, 32)).read(case)
    assert (found.degree, tuple(found.image.shape[1:])) == (2, (8, 32, 32))
    assert reader(size=(32, 32, 32), degree=0).read(case).image.shape[1:] == (32, 32, 32)


def test_a_window_of_intensities(pair: Any) -> None:
    found = reader(window=(0, 500)).read(pair())
    assert found.image.max() == 1
    assert ((found.image[0] == 1) >= (found.target == 1)).all()


def test_channels_of_several_files(pair: Any, tmp_path: Path) -> None:
    first, second = pair("a"), pair("b")
    both = Case("both", (*first.images, *second.images), first.target, "train")
    assert reader(in_chans=2).read(both).image.shape[0] == 2
    other = nifti(tmp_path / "c.nii.gz", blob(12, 14, 8))
    with pytest.raises(ImageError, match=r"c\.nii\.gz: its size .*a\.nii\.gz"):
        reader(in_chans=2).read(Case("odd", (*first.images, other), first.target, "train"))
    told = read_channels(both.images, spacing=(4.0, 1.0, 1.0))
    assert (told.array.shape[0], told.spacing.z, told.source) == (2, 4.0, str(both.images[0]))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"label": np.zeros((12, 14, 8), np.uint8)}, "size"),
        ({"spacing": (1, 1, 1.5)}, "spacing"),
        ({"shift": 3.0}, "origin"),
        ({"spacing": (-1, 1, 1)}, "direction"),
    ],
)
def test_label_elsewhere_is_refused_and_both_are_named(
    pair: Any, change: dict[str, Any], what: str
) -> None:
    with pytest.raises(ImageError, match=rf"a_mask\.nii\.gz: its {what} .*a\.nii\.gz"):
        reader().read(pair(**change))


def test_all_bad_labels_are_told(pair: Any) -> None:
    bad = np.zeros((12, 14, 16), np.uint8)
    bad[0, 0, 0] = 7
    cases = [pair("good"), pair("one", label=bad), pair("two", label=bad)]
    with pytest.raises(ImageError, match=r"one_mask.*\[7\] are not among the 2.*two_mask"):
        list(read_cases(cases, reader(), workers=2))


def test_rows_of_a_table(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "table.npz",
        flat=rng.integers(0, 255, (3, 28, 28), np.uint8),
        colour=rng.integers(0, 255, (3, 28, 28, 3), np.uint8),
        volume=rng.integers(0, 255, (3, 16, 16, 16), np.uint8),
    )

    def read(array: str, **rule: Any) -> Any:
        case = Case("x", (tmp_path / "table.npz",), (0.0,), "train", row=(array, 1))
        return reader(**rule).read(case)

    with np.load(tmp_path / "table.npz") as table:
        flat = table["flat"][1]
    found = read("flat")
    assert (found.degree, tuple(found.image.shape)) == (5, (1, 1, 28, 28))
    np.testing.assert_allclose(found.image[0, 0].float(), flat / 255, atol=1e-3)
    assert read("colour", in_chans=3).image.shape == (3, 1, 28, 28)
    found = read("volume", size=(32, 32, 32))
    assert (found.degree, tuple(found.image.shape)) == (0, (1, 32, 32, 32))
