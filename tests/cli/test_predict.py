"""``spadnet predict`` says of new files what the fine-tuned model said of the test split."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from spadnet.cli import main
from spadnet.models.vit import SpadViT
from spadnet.weights.hub import save_pretrained

Capture = pytest.CaptureFixture[str]
CONV = ("model=spad_conv_tiny", "model.widths=[4,8]", "data.size=[1,16,16]")
MAPS = ("data.classes=[background,blob]", "data.crop=[16,32,32]", "data.batch_size=2")


def predict(capsys: Capture, *argv: Any) -> tuple[int, str]:
    capsys.readouterr()
    code = main(["predict", "device=cpu", *map(str, argv)])
    captured = capsys.readouterr()
    assert captured.out == ""
    return code, captured.err


def table(file: Path) -> dict[str, dict[str, str]]:
    with open(file, newline="") as lines:
        return {row["key"]: row for row in csv.DictReader(lines)}


def test_classes_are_those_of_the_test_split(
    finetune: Callable[..., int], folders: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert finetune(*CONV) == 0
    with open(tmp_path / "run" / "predictions.csv", newline="") as file:
        known = [float(row["dark"]) for row in csv.DictReader(file)]
    out = tmp_path / "out"
    arguments = [f"in={folders / 'test'}", f"out={out}", f"model={tmp_path / 'run'}"]
    code, err = predict(capsys, *arguments, "tta=false")
    assert code == 0, err
    rows = table(out / "predictions.csv")
    assert sorted(rows) == [f"{name}/{i}.png" for name in ("bright", "dark") for i in range(3)]
    found = [float(row["dark"]) for row in rows.values()]
    np.testing.assert_allclose(sorted(found), sorted(known), atol=1e-3)
    for row in rows.values():
        assert float(row["dark"]) + float(row["bright"]) == pytest.approx(1, abs=1e-4)
        assert row["prediction"] == ("dark" if float(row["dark"]) > 0.5 else "bright")
    assert (
        "0 images predicted (6 were there already)" in predict(capsys, *arguments, "tta=false")[1]
    )
    code, err = predict(capsys, f"in={tmp_path / 'none'}", *arguments[1:])
    assert (code, "none: no such file or folder" in err.splitlines()[-1]) == (1, True)
    # Other facts make another model: all is predicted again.
    config = tmp_path / "run" / "best" / "config.json"
    facts = json.loads(config.read_text())
    facts["training"] |= {"degrees": [0, 1]}
    config.write_text(json.dumps(facts))
    err = predict(capsys, *arguments, "tta=[1,2]")[1]
    assert "6 images predicted" in err
    assert err.count("degree 5 of anisotropy was not in the training (degrees 0, 1)") == 1
    mirrored = [float(row["dark"]) for row in table(out / "predictions.csv").values()]
    assert mirrored != found


def test_masks_lie_on_the_grids_of_the_files(
    finetune: Callable[..., int], maps: Path, tmp_path: Path, capsys: Capture
) -> None:
    arguments = ("model=spad_unet_tiny", f"data.path={maps}", *MAPS, "trainer.max_steps=2")
    assert finetune(*arguments) == 0
    out, scans = tmp_path / "out", tmp_path / "scans"
    scans.mkdir()
    with open(tmp_path / "run" / "cases.csv", newline="") as file:
        dice = {row["case"]: float(row["dice"]) for row in csv.DictReader(file)}
    for case in dice:
        shutil.copy(maps / "images" / f"{case}.nii.gz", scans)
    (scans / "cut.nii.gz").write_bytes((scans / "c3.nii.gz").read_bytes()[:900])
    code, err = predict(capsys, f"in={scans}", f"out={out}", f"model={tmp_path / 'run' / 'best'}")
    assert code == 0, err
    assert "cut.nii.gz" in (out / "quarantine.jsonl").read_text()
    for case, expected in dice.items():
        image = nib.load(maps / "images" / f"{case}.nii.gz")  # type: ignore[attr-defined]
        label = np.asarray(nib.load(maps / "labels" / f"{case}.nii.gz").dataobj) > 0  # type: ignore[attr-defined]
        mask = nib.load(out / f"{case}.nii.gz")  # type: ignore[attr-defined]
        assert mask.header.get_sform().tobytes() == image.header.get_sform().tobytes()
        voxels = np.asarray(mask.dataobj) > 0
        both = 2 * (voxels & label).sum() / (voxels.sum() + label.sum())
        assert both == pytest.approx(expected, abs=1e-6)
        row = table(out / "predictions.csv")[f"{case}.nii.gz"]
        assert int(row["voxels_blob"]) == voxels.sum()
    (out / "c3.nii.gz").unlink()
    again = predict(capsys, f"in={scans}", f"out={out}", f"model={tmp_path / 'run' / 'best'}")
    assert "1 images predicted (1 were there already)" in again[1]
    assert (out / "c3.nii.gz").is_file()


def test_mistakes_are_one_line(pictures: Path, tmp_path: Path, capsys: Capture) -> None:
    torch.manual_seed(0)
    vit = SpadViT(in_chans=1, embed_dim=16, depth=1, num_heads=2, pos_grid=(2, 2, 2))
    encoder = save_pretrained(vit, tmp_path / "encoder")
    base = [f"in={pictures}", f"out={tmp_path / 'out'}"]
    for arguments, code, message in (
        (base, 2, "model=FOLDER is missing"),
        ([*base, f"model={encoder}"], 1, "was not fine-tuned"),
        ([*base, f"model={tmp_path / 'none'}"], 1, "no such folder"),
        ([*base, f"model={encoder}", "tta=[3]"], 2, "tta must be"),
        ([*base, f"model={encoder}", "overlap=1"], 2, "overlap must be"),
        ([base[1], f"model={encoder}"], 2, "in=FILE is missing"),
        ([base[0], f"out={encoder / 'config.json'}", f"model={encoder}"], 2, "is a file"),
    ):
        found, err = predict(capsys, *arguments)
        assert found == code, arguments
        assert message in err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_a_class_that_hides_a_column_is_told(
    finetune: Callable[..., int], folders: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert finetune(*CONV, "test=false") == 0
    best = tmp_path / "run" / "best"
    facts = json.loads((best / "config.json").read_text())
    facts["training"]["task"]["classes"][0] = "signature"  # as no fine-tuning writes it
    (best / "config.json").write_text(json.dumps(facts))
    code, err = predict(capsys, f"in={folders}", f"out={tmp_path / 'out'}", f"model={best}")
    assert code == 1
    assert f"{best}: 'signature' names a column" in err.splitlines()[-1]
