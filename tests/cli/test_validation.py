"""Both stages look at held-out images, and probe the encoder on labelled ones."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture

from spadnet.cli import main
from spadnet.train.metrics_log import read_rows

SMALL = (
    "data=folder",
    "data.tokens=[1,2,2]",
    "data.token_budget=8",
    "data.synthetic_share=0",
    "trainer.accelerator=cpu",
    "trainer.precision=32-true",
    "trainer.max_steps=2",
    "logger.tensorboard=false",
    "validate.every_steps=1",
    "validate.panels_every_steps=2",
    "validate.tokens=[1,2,2]",
)


def test_both_stages(pictures: Path, folders: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    same = (*SMALL, f"data.path={pictures}", f"validate.path={pictures}")
    first = ("model.codebook_size=8", "code_start.share=0", f"out={one}")
    assert main(["pretrain-tokenizer", *same, *first]) == 0
    rows = read_rows(one / "metrics.csv")
    assert [row["step"] for row in rows] == ["1", "2"]
    assert all(float(row["val/psnr"]) > 0 and float(row["val/perplexity"]) >= 1 for row in rows)
    assert float(rows[-1]["loss_per_dataset/my pictures"]) > 0
    assert sum(json.loads((one / "code_use.json").read_text())["counts"]) == 3 * 4
    assert len(list((one / "panels" / "step-00000002").glob("*.png"))) == 1
    told = json.loads((one / "data.json").read_text())
    assert (told["images"], told["held_out"]) == (3, 0)
    second = (f"tokenizer={one}", "model.depth=2", f"out={two}", f"validate.probe.path={folders}")
    assert main(["pretrain-mim", *same, *second, "validate.probe.size=[1,32,32]"]) == 0
    last = read_rows(two / "metrics.csv")[-1]
    assert 0 <= float(last["val/knn_accuracy"]) <= 1
    assert float(last["val/gain"]) == pytest.approx(
        1 - float(last["val/loss"]) / float(last["val/constant"])
    )
    assert json.loads((two / "summary.json").read_text())["metrics"]["val/loss"] == float(
        last["val/loss"]
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("validate.path=missing", "missing: no such folder"),
        ("validate.every_steps=0", "every_steps must be positive, got 0"),
        ("logger.wandb=maybe", "logger.wandb must be true or false"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    pictures: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: str,
    reason: str,
) -> None:
    out = tmp_path / "run"
    arguments = (*SMALL, f"data.path={pictures}", "code_start.share=0", f"out={out}", change)
    assert main(["pretrain-tokenizer", *arguments]) != 0
    words = capsys.readouterr().err.strip().splitlines()
    assert reason in words[-1]
    assert not out.exists()


def test_images_of_one_token_are_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing can be hidden of them; the training goes on, and other objectives are validated."""
    folder = tmp_path / "small"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(3):  # the last has tokens, but no window of two
        shape = (28, 28) if number < 2 else (40, 28)
        pixels = rng.integers(0, 255, shape, dtype=np.uint8)
        Picture.fromarray(pixels).save(folder / f"{number}.png")
    arguments = (*SMALL, f"data.path={folder}", f"validate.path={folder}", "model.depth=2")
    line = ("experiment=mae_tiny", *arguments, "data.tokens=[1,1,2]", f"out={tmp_path / 'run'}")
    assert main(["pretrain-mim", *line]) == 0
    assert "3 of 3 held-out images are too small to hide a part" in capsys.readouterr().err
    assert (tmp_path / "run" / "encoder").is_dir()
    assert not any("val/" in name for name in read_rows(tmp_path / "run" / "metrics.csv")[-1])


def test_a_unet_has_no_features_to_probe(
    folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["pretrain-mim", "experiment=rasd_unet_tiny", f"validate.probe.path={folders}"]
    assert main([*line, f"out={tmp_path / 'run'}", "trainer.accelerator=cpu"]) == 2
    assert "validate.probe is for a spad_vit" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "run").exists()
