"""Labelled images so small that a fine-tuning on them takes seconds; a function of nothing else."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image


def write_pictures(folder: Path) -> Path:
    """Noise, dark and bright, in folders of split and class; return the folder."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 5), ("test", 4)):
        for name, top in (("bright", 120), ("dark", 90)):
            there = folder / split / name
            there.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                noise = rng.integers(0, top, (20, 20), dtype=np.uint8)
                Image.fromarray(noise).save(there / f"{i}.png")
    return folder


def write_volumes(folder: Path) -> Path:
    """Thin and thick volumes of noise with a box, and their label maps; return the folder."""
    rng = np.random.default_rng(0)
    splits: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for i, split in enumerate(["train", "train", "train", "val", "val", "test"]):
        depth, mm = (20, 1.0) if i % 2 else (6, 4.0)
        label = np.zeros((22, 24, depth), np.uint8)
        label[6:14, 8:16, depth // 4 : depth // 2] = 1
        image = (rng.random(label.shape) * 100 + 100 * label).astype(np.int16)
        affine = np.diag([1.0, 1.0, mm, 1.0])
        for part, array in (("images", image), ("labels", label)):
            volume = nib.Nifti1Image(array, affine)  # type: ignore[no-untyped-call]
            nib.save(volume, folder / part / f"c{i}.nii.gz")
        splits[split].append(f"c{i}")
    (folder / "split.json").write_text(json.dumps(splits))
    return folder
