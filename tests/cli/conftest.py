"""Small images for the tests of the command line."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


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
