"""``spadnet doctor MODEL`` and ``spadnet models`` on checkpoint folders."""

from pathlib import Path

import pytest

from spadnet.cli import main
from spadnet.models.tokenizer import Tokenizer
from spadnet.weights.hub import save_pretrained

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = Tokenizer(in_chans=1, widths=(8, 8, 16), codebook_size=8)
    facts = {"data": ["A", "B", "C", "D"]}
    return save_pretrained(model, tmp_path / "runs" / "tokenizer", name="mine", training=facts)


@pytest.fixture(autouse=True)
def _no_downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))


def test_a_whole_model_is_well(folder: Path, capsys: Capture) -> None:
    assert main(["doctor", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "FAIL" not in out
    for fact in ("Tokenizer mine", "keys loaded", "as recorded", "6 agree, worst difference"):
        assert fact in out


def test_a_changed_byte_is_found(folder: Path, capsys: Capture) -> None:
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 0x40
    file.write_bytes(data)
    assert main(["doctor", str(folder)]) == 1
    out = capsys.readouterr().out
    assert "FAIL SHA-256" in out
    assert "damaged or of another model" in out


def test_a_model_without_proofs_is_told_as_such(folder: Path, capsys: Capture) -> None:
    (folder / "golden.safetensors").unlink()
    assert main(["doctor", str(folder)]) == 0
    assert "none are stored" in capsys.readouterr().out


def test_what_is_no_model_fails(tmp_path: Path, capsys: Capture) -> None:
    assert main(["doctor", str(tmp_path)]) == 1
    assert "FAIL model" in capsys.readouterr().out
    assert main(["doctor", "to=x"]) == 2


def test_weights_are_listed_with_where_they_lie(folder: Path, capsys: Capture) -> None:
    assert main(["models", f"in={folder.parent}"]) == 0
    out = capsys.readouterr().out
    (line,) = (line for line in out.splitlines() if line.startswith("mine"))
    for fact in ("tokenizer", "A, B, C and 1 more", "Apache-2.0", str(folder)):
        assert fact in line
    assert main(["models", f"in={folder.parent / 'none'}"]) == 1
    assert capsys.readouterr().err == f"error: {folder.parent / 'none'}: no such folder\n"
