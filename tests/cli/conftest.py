"""Small images for the tests of the command line."""

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from spadnet.cli import main

_FINETUNE = (
    "trainer.accelerator=cpu",
    "trainer.precision=32-true",
    "trainer.max_steps=4",
    "logger.tensorboard=false",
    "callbacks.show_progress=false",
    "data.batch_size=4",
    "data.read_workers=0",
    "validate.every_steps=2",
)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Folder with a few pictures of smooth noise."""
    folder = tmp_path / "my pictures"
    (folder / "inner").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.png", "inner/c.png"):
        coarse = rng.integers(0, 256, size=(8, 8), dtype=np.uint8)
        Image.fromarray(coarse).resize((64, 48)).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Dark and bright pictures in folders of their class."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 3), ("test", 3)):
        for name, top in (("bright", 255), ("dark", 90)):
            folder = tmp_path / "data" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                noise = rng.integers(0, top, (20, 20), dtype=np.uint8)
                Image.fromarray(noise).save(folder / f"{i}.png")
    return tmp_path / "data"


@pytest.fixture
def finetune(folders: Path, tmp_path: Path) -> Callable[..., int]:
    """Run the verb on the pictures, in ``tmp_path / "run"``."""

    def run(*argv: str) -> int:
        return main(
            ["finetune", *_FINETUNE, f"data.path={folders}", f"out={tmp_path / 'run'}", *argv]
        )

    return run


@pytest.fixture
def maps(tmp_path: Path) -> Path:
    """Thin and thick volumes with bright blobs, and their label maps."""
    rng = np.random.default_rng(0)
    splits: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for folder in ("images", "labels"):
        (tmp_path / "maps" / folder).mkdir(parents=True)
    for i, split in enumerate(["train", "train", "val", "test", "test"]):
        depth, mm = (20, 1.0) if i % 2 else (6, 4.0)
        label = np.zeros((22, 24, depth), np.uint8)
        label[6:14, 8:16, depth // 4 : depth // 2] = 1
        image = (rng.random(label.shape) * 50 + 200 * label).astype(np.int16)
        affine = np.diag([1.0, 1.0, mm, 1.0])
        for folder, array in (("images", image), ("labels", label)):
            file = tmp_path / "maps" / folder / f"c{i}.nii.gz"
            nib.save(nib.Nifti1Image(array, affine), file)  # type: ignore[no-untyped-call]
        splits[split].append(f"c{i}")
    (tmp_path / "maps" / "split.json").write_text(json.dumps(splits))
    return tmp_path / "maps"
