"""The tool evaluates any model folder and any volumes, and says what it left out."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from spadnet.models.mim import MaskedImageModel
from spadnet.models.tokenizer import Tokenizer
from spadnet.models.vit import SpadViT
from spadnet.weights.hub import save_pretrained

TOOLS = Path(__file__).resolve().parents[2] / "tools"
Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def tools(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the tools importable."""
    monkeypatch.syspath_prepend(str(TOOLS))


def run(capsys: Capture, *arguments: object) -> tuple[int, str, str]:
    import eval_consistency

    code = eval_consistency.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def volumes(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name, spacing in (("a", 1.0), ("b", 1.0), ("thick", 5.0)):
        voxels = rng.integers(1, 999, (32, 32, 32)).astype(np.int16)
        affine = np.diag([1.0, 1.0, spacing, 1.0])
        (tmp_path / "data").mkdir(exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(voxels, affine), tmp_path / "data" / f"{name}.nii")
    (tmp_path / "data" / "broken.nii").write_bytes(b"no image")
    return tmp_path / "data"


def test_writes_figures_of_each_degree(volumes: Path, tmp_path: Path, capsys: Capture) -> None:
    vit = SpadViT(in_chans=1, embed_dim=16, depth=1, num_heads=1, pos_grid=(2, 2, 2))
    folder = save_pretrained(MaskedImageModel(vit, codebook_size=8), tmp_path / "mim")
    file = tmp_path / "figures.json"
    code, out, err = run(capsys, folder, "--data", volumes, "--json", file)
    assert code == 0, out + err
    assert "2 volumes of degree 0; 1 images of other degrees and 1 that cannot" in out
    assert "broken.nii" in err
    figures = json.loads(file.read_text())
    assert sorted(figures) == ["0", "1", "2"]
    for row in figures.values():
        assert set(row) == {"cosine", "retrieval", "baseline_cosine", "baseline_retrieval"}
        assert -1 <= row["cosine"] <= 1 + 1e-6
        assert 0 <= row["retrieval"] <= 1
    assert figures["0"]["cosine"] == pytest.approx(1)


def test_mistakes_are_one_line(volumes: Path, tmp_path: Path, capsys: Capture) -> None:
    folder = save_pretrained(Tokenizer(in_chans=1, widths=(8, 16), stem_stride=8), tmp_path / "t")
    code, _, err = run(capsys, folder, "--data", volumes)
    assert (code, err.count("\n")) == (1, 1)
    assert "not a SpadViT" in err


def test_file_that_cannot_be_written_is_named(
    volumes: Path, tmp_path: Path, capsys: Capture
) -> None:
    vit = SpadViT(in_chans=1, embed_dim=16, depth=1, num_heads=1, pos_grid=(2, 2, 2))
    folder = save_pretrained(vit, tmp_path / "encoder")
    file = tmp_path / "absent" / "figures.json"
    code, _, err = run(capsys, folder, "--data", volumes, "--json", file)
    assert code == 1
    assert err.splitlines()[-1] == f"error: {file}: No such file or directory"
