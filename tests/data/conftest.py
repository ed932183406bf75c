"""Small image files of every kind."""

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

WriteNifti = Callable[..., Path]


@pytest.fixture
def write_nifti(tmp_path: Path) -> WriteNifti:
    """Write an array [x, y, z] as NIfTI with an affine."""

    def write(
        array: np.ndarray, affine: np.ndarray | None = None, name: str = "image.nii.gz"
    ) -> Path:
        path = tmp_path / name
        nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
        return path

    return write


@pytest.fixture
def ramp() -> np.ndarray:
    """Integers that are all different, [x, y, z]."""
    return np.arange(6 * 7 * 8, dtype=np.int16).reshape(6, 7, 8)
