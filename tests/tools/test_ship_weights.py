"""Weights for the package: rounded, described, and refused where they are too large."""

import sys
from pathlib import Path

import pytest
import torch
import yaml

from spadnet.models.tokenizer import Tokenizer
from spadnet.weights.checkpoint import CARD_FILE
from spadnet.weights.hub import load_checkpoint, save_pretrained

TOOLS = Path(__file__).resolve().parents[2] / "tools"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A trained folder, facts beside it, and an empty package."""
    monkeypatch.syspath_prepend(str(TOOLS))
    import ship_weights

    monkeypatch.setattr(ship_weights, "SHIPPED", tmp_path / "shipped")
    torch.manual_seed(0)
    model = Tokenizer(in_chans=1, widths=(8, 16), stem_stride=8, codebook_size=11)
    facts = {"tiny": {"data": ["mine (MIT)"], "figures": {"PSNR": "+1 dB"}, "limits": "few images"}}
    (tmp_path / "facts.yaml").write_text(yaml.safe_dump(facts))
    own = {"steps": 3, "run": "a folder of mine"}
    folder = save_pretrained(model, tmp_path / "run", training=own)
    arguments = ["ship_weights.py", str(folder), "tiny", "--facts", str(tmp_path / "facts.yaml")]
    monkeypatch.setattr(sys, "argv", arguments)
    return tmp_path


def test_weights_are_rounded_and_described(folder: Path) -> None:
    import ship_weights

    ship_weights.main()
    made, before = (load_checkpoint(folder / name) for name in ("shipped/tiny", "run"))
    half, whole = made.model.state_dict(), before.model.state_dict()
    assert all(torch.equal(half[key], whole[key].half().float()) for key in whole)
    sizes = [
        (folder / name / "model.safetensors").stat().st_size for name in ("shipped/tiny", "run")
    ]
    assert sizes[0] < 0.6 * sizes[1]
    assert made.config["training"] == {
        "steps": 3,
        "data": ["mine (MIT)"],
        "figures": {"PSNR": "+1 dB"},
        "limits": "few images",
    }
    card = (folder / "shipped" / "tiny" / CARD_FILE).read_text()
    assert "| PSNR | +1 dB |" in card
    assert "few images" in card


def test_too_much_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ship_weights

    monkeypatch.setattr(ship_weights, "MAX_BYTES", 1000)
    with pytest.raises(SystemExit, match="more than 25 MB"):
        ship_weights.main()
