"""Make the images that spadnet carries from the collection of real images.

python tools/make_samples.py --source DATA     writes spadnet/data/samples
"""

import argparse
import gzip
import io
import logging
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.Image

from spadnet.data.image import Image
from spadnet.data.io import on_own_grid, read_image, write_like
from spadnet.data.preprocess import crop_image
from spadnet.data.samples import SAMPLES

MAX_BYTES = 5_900_000
HOUNSFIELD_RANGE = (-1024, 1500)
HOUNSFIELD_STEP = 4
MR_LEVELS = 256
_log = logging.getLogger("make_samples")

Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


class Recipe(NamedTuple):
    """How one sample is cut from its original.

    Attributes:
        name: File to write.
        original: File below the source folder.
        box: First and last+1 voxel along z, y, x of the oriented image; None for all of it.
        width: Pixels of the shorter side of a picture after resizing; 0 to leave it.
    """

    name: str
    original: str
    box: Box | None = None
    width: int = 0


RECIPES = [
    Recipe("ct_body_3mm.nii.gz", "volumes/ct_body_3mm.nii.gz", ((10, 90), (6, 94), (8, 112))),
    Recipe(
        "mr_brain_6.5mm_a.nii.gz", "volumes/mr_brain_6.5mm_a.nrrd", ((1, 25), (40, 216), (52, 196))
    ),
    Recipe("ct_chest_10mm.nii.gz", "volumes/ct_chest_10mm.nrrd", ((0, 34), (16, 112), (0, 128))),
    Recipe("mr_t1_4mm.nii.gz", "volumes/mr_t1_4mm.nii.gz", ((0, 26), (48, 192), (68, 196))),
    Recipe(
        "ct_chest_5mm.nii.gz", "volumes/ct_chest_5mm.nii.gz", ((24, 48), (176, 320), (184, 328))
    ),
    Recipe("mr_t1_1mm.nii.gz", "volumes/mr_t1_1mm.mgz", ((96, 176), (88, 168), (88, 168))),
    Recipe("fundus_retina.jpg", "images2d/fundus_retina.jpg", None, 512),
    Recipe(
        "ultrasound_grey.png", "images2d/ultrasound_grey.dcm", ((0, 1), (92, 692), (132, 848)), 320
    ),
    Recipe("mr_body_3mm.nii.gz", "volumes/mr_body_3mm.nii.gz"),
    Recipe(
        "ct_aorta_1.5mm.nii.gz", "volumes/ct_aorta_1.5mm.nii.gz", ((56, 136), (48, 128), (76, 156))
    ),
    Recipe("ct_lung_5mm.nii.gz", "volumes/ct_lung_5mm.nrrd", ((16, 32), (168, 344), (168, 344))),
    Recipe(
        "mr_brain_6.5mm_b.nii.gz", "volumes/mr_brain_6.5mm_b.nrrd", ((2, 22), (40, 216), (56, 200))
    ),
    Recipe(
        "ct_head_2.5mm.nii.gz", "volumes/ct_head_2.5mm.nii.gz", ((24, 64), (56, 184), (32, 160))
    ),
    Recipe("ultrasound_rgb.png", "images2d/ultrasound_rgb.dcm", ((0, 1), (63, 191), (380, 636))),
]


def main() -> None:
    """Write the samples and their notice."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--source", type=Path, required=True, help="folder with volumes/, images2d/"
    )
    default = Path(__file__).resolve().parents[1] / "spadnet" / "data" / "samples"
    parser.add_argument("--out", type=Path, default=default)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    facts = {sample.path.name: sample for sample in SAMPLES}
    for recipe in RECIPES:
        sample = facts[recipe.name]
        image = cut(
            read_image(arguments.source / recipe.original), recipe, modality=sample.modality
        )
        path = arguments.out / recipe.name
        if image.spacing.is_planar:
            write_picture(image, path, width=recipe.width)
        else:
            write_like(image.array, image, path)
            # Packed again: nibabel packs lightly and writes the time.
            path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()), 9, mtime=0))
        size = " x ".join(map(str, image.array.shape[1:]))
        degree = image.spacing.degree()
        _log.info(
            "%-24s %-7s %-14s degree %d %8d bytes",
            recipe.name, sample.split, size, degree, path.stat().st_size,
        )  # fmt: skip
    total = sum(path.stat().st_size for path in arguments.out.iterdir())
    _log.info("%d bytes in all", total)
    if total > MAX_BYTES:
        raise SystemExit(f"{total} bytes are more than {MAX_BYTES}")


def cut(image: Image, recipe: Recipe, *, modality: str) -> Image:
    """Crop one original and round its intensities so that it packs well."""
    if recipe.box is not None:
        z, y, x = recipe.box
        image = crop_image(image, (slice(*z), slice(*y), slice(*x)))
    array = image.array
    if modality == "CT":
        step = HOUNSFIELD_STEP
        array = np.clip(np.rint(array / step) * step, *HOUNSFIELD_RANGE).astype(np.int16)
    elif modality == "MR" and array.max() > 2 * MR_LEVELS:
        step = mr_step(array)
        array = (np.rint(array / step) * step).astype(np.int16)
    elif modality == "MR":
        array = array.astype(np.int16)
    return on_own_grid(image._replace(array=np.ascontiguousarray(array)))


def mr_step(array: np.ndarray) -> int:
    """Power of two that leaves at least ``MR_LEVELS`` levels."""
    return int(2 ** np.floor(np.log2(array.max() / MR_LEVELS)))


def write_picture(image: Image, path: Path, *, width: int) -> None:
    """Write a 2D image as PNG or JPEG, its shorter side resized to ``width`` pixels."""
    pixels = image.array[:, 0].transpose(1, 2, 0)
    picture = PIL.Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    if width:
        factor = width / min(picture.size)
        size = (round(picture.width * factor), round(picture.height * factor))
        picture = picture.resize(size, PIL.Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if path.suffix == ".jpg":
        picture.save(buffer, "JPEG", quality=90)
    else:
        picture.save(buffer, "PNG", optimize=True)
    path.write_bytes(buffer.getvalue())


if __name__ == "__main__":
    main()
