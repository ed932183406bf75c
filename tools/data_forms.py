"""What ``bench_data.py`` times: MONAI's lazy pipeline and SimpleITK beside spadnet's store.

The crop of a plan is written as MONAI's transforms of the same geometry: load, pad, crop the box
that is needed, ``RandAffine`` for the rotation, ``Affine`` for scale, flips and place. All of them
are lazy, so MONAI resamples once. It gets what helps it most: voxels that are prepared already and
lie in an uncompressed float16 file which is mapped, not read; float32 arithmetic instead of its
default float64.
"""

import ctypes
import functools
import gc
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import SimpleITK as sitk  # noqa: N813
import torch
from torch import Tensor

from spadnet.data.crop_plan import CropAugment, CropPlan, Size, draw_crop_plan
from spadnet.data.extract import Box, extract
from spadnet.data.io import read_image
from spadnet.data.preprocess import cut_to_body, scale
from spadnet.data.store import StoredImage, StoredVolume, open_volume, storable, write_volume
from spadnet.spacing import Spacing

CROP: Size = (64, 128, 128)
MIX = 10  # crops of a repeat
NUM_ROTATED = 3


class Prepared(NamedTuple):
    """One real volume in every form that is timed.

    Attributes:
        source: The volume's own file.
        store: As ``spadnet preprocess`` keeps it.
        npy: The same intensities as float16, [C, D, H, W].
    """

    source: Path
    store: Path
    npy: Path


def prepare_files(source: Path, folder: Path) -> Prepared:
    """Write the store's file and the float16 array of a volume.

    Args:
        source: Volume in any format that spadnet reads; another one than nii.gz is rewritten.
        folder: Where to write.
    """
    image, window = cut_to_body(read_image(source))
    if any(size < least for size, least in zip(image.array.shape[1:], CROP, strict=True)):
        raise ValueError(f"{source}: {image.array.shape[1:]} voxels are less than a crop {CROP}")
    array, window = storable(image.array, window)
    shape = (array.shape[0], array.shape[1], array.shape[2], array.shape[3])
    about = StoredImage(source.name, shape, image.spacing, window, None, "")
    made = Prepared(source, folder / "volume.b2nd", folder / "volume.npy")
    write_volume(made.store, array, about)
    np.save(made.npy, scale(array, window).astype(np.float16))
    if not source.name.endswith(".nii.gz"):
        made = made._replace(source=folder / "volume.nii.gz")
        sitk.WriteImage(sitk.ReadImage(str(source)), str(made.source))
    return made


def deepen(files: Prepared, times: int) -> StoredVolume:
    """Store the volume again with its slices repeated, ``times`` as large."""
    volume = open_volume(files.store)
    stored = volume.stored
    low, high = stored.window
    array = np.load(files.npy, mmap_mode="r").astype(np.float32) * (high - low) + low
    array = np.concatenate([array.round().astype(np.int16)] * times, axis=1)
    shape = (array.shape[0], array.shape[1], array.shape[2], array.shape[3])
    path = files.store.with_name("deep.b2nd")
    write_volume(path, array, stored._replace(shape=shape))
    return open_volume(path)


def draw_mix(volume: StoredVolume, *, seed: int) -> list[CropPlan]:
    """Plans of one repeat: 3 of 10 rotated as published, the others scaled as published.

    Voxels count as cubes, whatever the header says: only then does the published augmentation
    rotate out of the plane, which costs most.
    """
    rng = np.random.default_rng(seed)
    rotated = CropAugment(rotation_prob=1.0, thick_prob=0.0)
    scaled = CropAugment(in_plane_prob=1.0, rotation_prob=0.0, thick_prob=0.0)
    shape: Size = (volume.shape[1], volume.shape[2], volume.shape[3])
    tokens: Size = (CROP[0] // 16, CROP[1] // 16, CROP[2] // 16)
    return [
        draw_crop_plan(rng, shape, Spacing(1.0, 1.0, 1.0), tokens=tokens, degree=0, augment=augment)
        for augment in [rotated] * NUM_ROTATED + [scaled] * (MIX - NUM_ROTATED)
    ]


def spadnet_crop(volume: StoredVolume, plan: CropPlan) -> Tensor:
    """Open the file and cut the crop, [C, D, H, W], as training does."""
    return extract(volume, plan)


def monai_crop(npy: Path, shape: Size, plan: CropPlan) -> Callable[[], Tensor]:
    """MONAI's pipeline for the crop of a plan; what comes back runs it."""
    from monai.transforms import Affine, Compose, RandAffine, SpatialCrop, SpatialPad

    load = _loader()
    # MONAI's axes are in the order of the array; it rotates about axis 0, 1, 2 in this order.
    turn = _rotation(plan.angles)
    factors = np.array(plan.scale) * np.where(plan.flips, -1.0, 1.0)
    reach = np.abs(turn * factors) @ ((np.array(CROP) - 1) / 2)
    low = np.maximum(np.floor(np.array(plan.centre) - reach).astype(int), 0)
    high = np.minimum(np.ceil(np.array(plan.centre) + reach).astype(int) + 1, shape)
    shift = turn.T @ (np.array(plan.centre) - (low + high - 1) / 2)
    bilinear = {"mode": "bilinear", "padding_mode": "border"}
    rotation = RandAffine(
        prob=1.0 if any(plan.angles) else 0.0,
        rotate_range=[(angle, angle) for angle in plan.angles],
        **bilinear,
    )
    placing = Affine(
        translate_params=shift.tolist(),
        scale_params=factors.tolist(),
        spatial_size=CROP,
        image_only=True,
        **bilinear,
    )
    pipeline = Compose(
        [
            load,
            SpatialPad(CROP),
            SpatialCrop(roi_start=low.tolist(), roi_end=high.tolist()),
            rotation,
            placing,
        ],
        lazy=True,
        overrides={"dtype": torch.float32},
    )

    def run() -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.as_tensor(pipeline(str(npy)))

    return run


@functools.cache
def _loader() -> Callable[[str], Tensor]:
    """MONAI's loader; building one tells again and again which readers are missing."""
    from monai.data import NumpyReader
    from monai.transforms import LoadImage

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return LoadImage(reader=NumpyReader(mmap_mode="r"), image_only=True, dtype=None)


def _rotation(angles: tuple[float, float, float]) -> np.ndarray:
    """MONAI's rotation matrix, which is the plan's where voxels are cubes."""
    from monai.transforms.utils import create_rotate

    return np.asarray(create_rotate(3, angles))[:3, :3]


def random_box(shape: tuple[int, ...], *, seed: int) -> Box:
    """A place of the crop's size somewhere in a volume, [D, H, W]."""
    rng = np.random.default_rng(seed)
    z, y, x = (int(rng.integers(n - wanted + 1)) for n, wanted in zip(shape, CROP, strict=True))
    return (z, z + CROP[0]), (y, y + CROP[1]), (x, x + CROP[2])


def simpleitk_crop(source: Path, box: Box) -> np.ndarray:
    """Read a box of a nii.gz file, which SimpleITK does faster than reading the whole.

    Returns:
        Voxels as the file has them, float32, [D, H, W].
    """
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(source))
    reader.SetOutputPixelType(sitk.sitkFloat32)
    reader.ReadImageInformation()
    reader.SetExtractIndex([low for low, _ in reversed(box)])
    reader.SetExtractSize([high - low for low, high in reversed(box)])
    return sitk.GetArrayFromImage(reader.Execute())


def peak_of(work: Callable[[], object]) -> int:
    """Bytes by which the process's memory grows at most while ``work`` runs (Linux with glibc).

    Counted in a child process whose libraries are loaded and warm, and which has given back all
    memory that it had to spare. Mapped parts of files count.
    """
    there, back = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            work()  # buffers that libraries keep
            gc.collect()
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")
            before = _status("VmRSS")
            work()
            os.write(back, str(_status("VmHWM") - before).encode())
        finally:
            os._exit(0)
    os.close(back)
    with open(there) as answer:
        text = answer.read()
    os.waitpid(child, 0)
    return int(text)


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {name} in /proc/self/status")
