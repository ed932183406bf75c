"""Make a small corpus for pre-training of the collection of real images.

python tools/make_corpus.py --source DATA --out CORPUS
spadnet preprocess in=CORPUS/corpus.csv out=STORE crop=false

Beside the images, but those that the package holds out, there are two kinds of images made of them:
radiographs, which are line integrals of CT through the body in random poses, and binary shapes of
organs out of the label maps. CORPUS/label_maps holds those label maps for data.label_maps.
"""

import argparse
import csv
import io
import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import SimpleITK
import torch
import torch.nn.functional as F
from PIL import Image as Picture
from torch import Tensor

from spadnet.data.atomic import write_atomic
from spadnet.data.io import read_image

IMAGES = {
    "volumes/ct_body_2mm.nii.gz": "CT",
    "volumes/ct_body_3mm.nii.gz": "CT",
    "volumes/ct_chest_10mm.nrrd": "CT",
    "volumes/ct_chest_2.5mm.nii.gz": "CT",
    "volumes/ct_chest_5mm.nii.gz": "CT",
    "volumes/ct_example_4mm.nii.gz": "CT",
    "volumes/mr_brain_6.5mm_a.nrrd": "MR",
    "volumes/mr_breast.nrrd": "MR",
    "volumes/mr_kidney_3mm.mha": "MR",
    "volumes/mr_t1_1mm.mgz": "MR",
    "volumes/mr_t1_4mm.nii.gz": "MR",
    "images2d/fundus_retina.jpg": "fundus",
    "images2d/ultrasound_grey.dcm": "US",
}
"""Files and modalities; patients of the package's held-out images are not among them."""

CHESTS = (
    "volumes/ct_chest_2.5mm.nii.gz",
    "volumes/ct_chest_5mm.nii.gz",
    "volumes/ct_chest_10mm.nrrd",
)
LABELS = (
    "volumes/ct_chest_2.5mm_organs.nii.gz",
    "volumes/ct_body_2mm_organs.nii.gz",
    "volumes/ct_body_small_3mm_organs.nii.gz",
    "volumes/mr_t1_1mm_regions.mgz",
)
WATER = 0.02  # attenuation per mm at the energies of a radiograph
GRID = 2.5  # mm of the voxels that are projected
CUBE = 64  # voxels of a shape's side
FILLED = (0.002, 0.5)  # share of a cube that a shape takes


def stem_of(name: str) -> str:
    """A file's name without its endings, which may hold a dot before them: ``ct_chest_2.5mm``."""
    return re.sub(r"(\.seg)?\.[a-z]+(\.gz)?$", "", Path(name).name)


class Row(NamedTuple):
    """A line of the table."""

    path: Path
    key: str
    dataset: str
    modality: str


def resampled(array: np.ndarray, spacing: tuple[float, ...], step: float) -> Tensor:
    """Bring a volume [D, H, W] to cubic voxels of ``step`` mm."""
    size = [max(round(n * mm / step), 1) for n, mm in zip(array.shape, spacing, strict=True)]
    volume = torch.from_numpy(array.astype(np.float32))[None, None]
    return F.interpolate(volume, size=size, mode="trilinear", align_corners=False)[0, 0]


def rotation(angles: np.ndarray) -> Tensor:
    """Rotation matrix of the axes x, y, z from angles in radians about z, y, x."""
    about_z, about_y, about_x = angles
    turns = []
    for (first, second), angle in zip(
        ((0, 1), (0, 2), (1, 2)), (about_z, about_y, about_x), strict=True
    ):
        turn = np.eye(3)
        turn[[first, second], [first, second]] = math.cos(angle)
        turn[first, second], turn[second, first] = -math.sin(angle), math.sin(angle)
        turns.append(turn)
    return torch.from_numpy((turns[0] @ turns[1] @ turns[2]).astype(np.float32))


def radiograph(attenuation: Tensor, air: Tensor, rng: np.random.Generator) -> Tensor:
    """Project a body along a direction that is near to front or side.

    Args:
        attenuation: Per mm, in voxels of ``GRID`` mm, [D, H, W].
        air: 1 in the lungs, [D, H, W].
        rng: Decides pose, exposure and size.

    Returns:
        Picture in [0, 1] with dense tissue bright, [H, W].
    """
    view = rng.choice([0.0, 0.0, 0.0, 0.5 * math.pi])  # mostly from the front
    angles = np.array([view, 0.0, 0.0]) + rng.normal(0, [0.15, 0.08, 0.08])
    side = max(attenuation.shape)
    reach = torch.tensor([side / n for n in reversed(attenuation.shape)])
    theta = torch.cat([rotation(angles) * reach[:, None], torch.zeros(3, 1)], dim=1)
    grid = F.affine_grid(theta[None], [1, 1, side, side, side], align_corners=False)
    both = torch.stack([attenuation, air])[None]
    posed = F.grid_sample(both, grid, align_corners=False)[0]
    # Rows go down and z goes up. What is looked at lies about the lungs: air within the body.
    path = posed[0].sum(1).flip(0) * GRID
    lungs = (posed[1] > 0.5).sum(1).flip(0) * GRID > 20
    spans = [_span(lungs.any(1 - axis), rng) for axis in (0, 1)]
    path = path[spans[0], spans[1]]
    low, high = torch.quantile(path.flatten(), torch.tensor([0.01, float(rng.uniform(0.9, 1.0))]))
    picture = ((path - low) / (high - low).clamp_min(1e-6)).clamp(0, 1)
    picture = picture ** float(rng.uniform(0.6, 1.6))
    # Down to the few pixels of small benchmarks, and up again: as coarse as those are.
    width = int(rng.choice([32, 48, 64, 96, 160]))
    shape = (max(round(width * picture.shape[0] / picture.shape[1]), 16), width)
    small = F.interpolate(picture[None, None], size=shape, mode="area")
    final = (max(shape[0], 96), max(shape[1], 96))
    return F.interpolate(small, size=final, mode="bilinear", align_corners=False)[0, 0]


def _span(inside: Tensor, rng: np.random.Generator) -> slice:
    """From the first to the last place inside, with a margin or a little less than that."""
    places = torch.nonzero(inside)[:, 0]
    first, last = int(places[0]), int(places[-1])
    margins = (rng.uniform(-0.08, 0.2, 2) * (last - first)).astype(int)
    return slice(max(first - int(margins[0]), 0), last + 1 + int(margins[1]))


def radiographs(source: Path, folder: Path, *, count: int, seed: int) -> Iterator[Row]:
    """Write ``count`` radiographs of each chest as pictures."""
    for number, name in enumerate(CHESTS):
        image = read_image(source / name)
        volume = resampled(image.array[0], tuple(image.spacing), GRID)
        attenuation = ((volume + 1000) / 1000).clamp(0, 2.5) * WATER
        attenuation[volume < -950] = 0
        air = ((volume > -950) & (volume < -600)).float()
        rng = np.random.default_rng((seed, 0, number))
        stem = stem_of(name)
        for index in range(count):
            picture = radiograph(attenuation, air, rng)
            path = folder / f"{stem}_{index:03d}.png"
            Picture.fromarray((picture * 255).round().to(torch.uint8).numpy()).save(path)
            yield Row(path, path.stem, "radiographs", "XR")


def shapes(source: Path, folder: Path, *, count: int, seed: int) -> Iterator[Row]:
    """Write ``count`` binary cubes of each label that is neither a speck nor everything."""
    for number, name in enumerate(LABELS):
        image = read_image(source / name)
        labels, spacing = image.array[0], tuple(image.spacing)
        rng = np.random.default_rng((seed, 1, number))
        stem = stem_of(name)
        for value in np.unique(labels)[1:].tolist():
            mask = labels == value
            places = np.argwhere(mask)
            if len(places) < 50:
                continue
            first, stop = places.min(0), places.max(0) + 1
            extent = ((stop - first) * spacing).max()  # mm
            for index in range(count):
                cube = _cube(mask, first, stop, spacing, extent, rng)
                if not FILLED[0] < cube.float().mean() < FILLED[1]:
                    continue
                path = folder / f"{stem}_{int(value):03d}_{index}.nii.gz"
                picture = SimpleITK.GetImageFromArray(cube.numpy().astype(np.uint8) * 255)
                SimpleITK.WriteImage(picture, str(path))
                yield Row(path, stem_of(path.name), "shapes", "shape")


def _cube(
    mask: np.ndarray,
    first: np.ndarray,
    stop: np.ndarray,
    spacing: tuple[float, ...],
    extent: float,
    rng: np.random.Generator,
) -> Tensor:
    """Draw a turned, cut and scaled look at a label, [CUBE, CUBE, CUBE]."""
    pad = 2
    box = tuple(slice(max(int(a) - pad, 0), int(b) + pad) for a, b in zip(first, stop, strict=True))
    part = torch.from_numpy(mask[box].astype(np.float32))[None, None]
    size = np.array(part.shape[2:]) * spacing
    side = extent * rng.uniform(0.7, 1.8)  # mm that the cube covers
    scale = torch.from_numpy((side / size[::-1]).astype(np.float32).copy())
    turn = rotation(rng.normal(0, 0.4, 3))
    shift = torch.from_numpy(rng.uniform(-0.2, 0.2, (3, 1)).astype(np.float32))
    theta = torch.cat([scale[:, None] * turn, scale[:, None] * shift], dim=1)
    grid = F.affine_grid(theta[None], [1, 1, CUBE, CUBE, CUBE], align_corners=False)
    return F.grid_sample(part, grid, align_corners=False)[0, 0] > 0.5


def main() -> None:
    """Write pictures, shapes and the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--source", type=Path, required=True, help="the collection of real images")
    parser.add_argument("--out", type=Path, required=True, help="folder of the corpus")
    parser.add_argument("--radiographs", type=int, default=130, help="of each chest")
    parser.add_argument("--shapes", type=int, default=2, help="of each label")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name in ("radiographs", "shapes", "label_maps"):
        (args.out / name).mkdir(exist_ok=True)
    rows = [
        Row((args.source / name).resolve(), stem_of(name), "scans", modality)
        for name, modality in IMAGES.items()
    ]
    rows += radiographs(
        args.source, args.out / "radiographs", count=args.radiographs, seed=args.seed
    )
    rows += shapes(args.source, args.out / "shapes", count=args.shapes, seed=args.seed)
    for name in LABELS:
        shutil.copyfile(args.source / name, args.out / "label_maps" / Path(name).name)
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(Row._fields)
    writer.writerows(rows)
    write_atomic(args.out / "corpus.csv", table.getvalue().encode())


if __name__ == "__main__":
    main()
