"""The figures of the pages: the same models give the same files."""

import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import PIL.Image
import pytest

from spadnet.models.mim import MaskedImageModel
from spadnet.models.tokenizer import Tokenizer
from spadnet.models.vit import SpadViT
from spadnet.weights.hub import save_pretrained

TOOLS = Path(__file__).resolve().parents[2] / "tools"


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(TOOLS))
    module = importlib.import_module("make_figures")
    monkeypatch.setattr(module, "OVERVIEW", ("mr_body_3mm", "ultrasound_rgb"))
    return module


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    tokenizer = Tokenizer(in_chans=1, widths=(8, 8, 16), codebook_size=8)
    vit = SpadViT(in_chans=1, embed_dim=16, depth=1, num_heads=2, pos_grid=(2, 2, 2))
    save_pretrained(tokenizer, tmp_path / "demo" / "tokenizer" / "tokenizer")
    save_pretrained(MaskedImageModel(vit, codebook_size=8), tmp_path / "demo" / "mim" / "mim")
    return tmp_path / "demo"


def test_same_models_give_same_files(tool: ModuleType, demo: Path, tmp_path: Path) -> None:
    for out in ("one", "two"):
        assert tool.main([str(demo), "--out", str(tmp_path / out)]) == 0
    for name in ("overview.png", "three_spacings.png"):
        first = (tmp_path / "one" / name).read_bytes()
        assert first == (tmp_path / "two" / name).read_bytes()
        assert len(first) < 400_000
        picture = np.asarray(PIL.Image.open(tmp_path / "one" / name).convert("RGB"))
        assert picture.std() > 10


def test_folder_without_models_is_refused(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tool.main([str(tmp_path / "nowhere")]) == 1
    assert "nowhere" in capsys.readouterr().err


def test_packaged_figures_are_small() -> None:
    figures = sorted((TOOLS.parent / "docs" / "figures").iterdir())
    assert [path.name for path in figures] == ["overview.png", "three_spacings.png"]
    assert sum(path.stat().st_size for path in figures) < 700_000
