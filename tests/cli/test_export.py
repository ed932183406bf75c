"""``spadnet export`` writes a file that says what it takes."""

from pathlib import Path
from typing import Any

import pytest

from spadnet.cli import main
from spadnet.inference.export import read_metadata
from spadnet.models.spad_unet import SpadUNet
from spadnet.models.tokenizer import Tokenizer
from spadnet.weights.hub import save_pretrained

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with the tokenizer inside."""
    run = tmp_path_factory.mktemp("run")
    save_pretrained(
        Tokenizer(in_chans=1, widths=(8, 16), stem_stride=8, codebook_size=11), run / "tokenizer"
    )
    return run


def export(capsys: Capture, *argv: Any) -> tuple[int, str]:
    code = main(["export", *map(str, argv)])
    return code, capsys.readouterr().err


def test_contract_is_in_the_file(model: Path, tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "tokenizer.onnx"
    code, err = export(capsys, f"model={model}", "spacing=[5,0.8,0.8]", f"out={file}")
    assert code == 0, err
    assert "degree 2): within " in err
    found = read_metadata(file)
    assert found["contract"]["intensity"]["percentiles"] == [0.5, 99.5]
    assert found["model"]["class"] == "Tokenizer"
    assert found["licence"] == "Apache-2.0"
    assert found["spacing"] == [5, 0.8, 0.8]


def test_bundle_is_a_new_folder(model: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "bundle"
    arguments = [f"model={model}", "degree=2", f"out={out}", "format=monai_bundle"]
    assert export(capsys, *arguments)[0] == 0
    assert sorted(path.name for path in out.iterdir()) == ["LICENSE", "configs", "docs", "models"]
    code, err = export(capsys, *arguments)
    assert (code, err.splitlines()[-1]) == (
        1,
        f"error: {out}: exists already; choose another name for the bundle",
    )


@pytest.mark.parametrize("form", ["onnx", "monai_bundle"])
def test_what_decodes_thin_slices_is_not_exported_for_thick_ones(
    tmp_path: Path, capsys: Capture, form: str
) -> None:
    unet = SpadUNet(in_chans=1, num_classes=2, features=(4, 8))
    folder = save_pretrained(unet, tmp_path / "best", training={"task": {"thin_logits": True}})
    arguments = [f"model={folder}", f"out={tmp_path / 'unet.onnx'}", f"format={form}"]
    code, err = export(capsys, *arguments, "degree=2")
    assert code == 1
    assert "thin slices from thick ones" in err.splitlines()[-1]
    assert not (tmp_path / "unet.onnx").exists()
    assert export(capsys, *arguments, "degree=0")[0] == 0


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        (["degree=null"], 2, "give either degree=N or spacing=[z,y,x]"),
        (["spacing=[1,1,1]"], 2, "give either degree=N or spacing=[z,y,x]"),
        (["degree=6"], 2, "degree must be a whole number from 0 to 5, got 6"),
        (["degree=null", "spacing=[1,1]"], 2, "spacing must be three numbers"),
        (["degree=null", "spacing=[1,1,0]"], 2, "spacing must be positive"),
        (["out=model.txt"], 2, "must end in .onnx or .pt2"),
        (["format=torch_export"], 2, "must end in .pt2"),
        (["format=onx"], 2, "unknown format 'onx'; did you mean 'onnx'?"),
        (["model=absent"], 1, "absent: no such folder"),
        (["out=null"], 2, "out=FILE is missing"),
    ],
)
def test_mistakes_are_one_line(
    changes: list[str], code: int, message: str, model: Path, tmp_path: Path, capsys: Capture
) -> None:
    usual = [f"model={model}", "degree=2", f"out={tmp_path / 'model.onnx'}"]
    names = {change.partition("=")[0] for change in changes}
    kept = [text for text in usual if text.partition("=")[0] not in names]
    found, err = export(capsys, *kept, *changes)
    assert (found, err.count("\n")) == (code, 1)
    assert message in err
    assert not list(tmp_path.iterdir())


def test_absent_package_names_the_extra(
    model: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    code, err = export(capsys, f"model={model}", "degree=2", f"out={tmp_path / 'model.onnx'}")
    assert code == 1
    assert err.endswith("error: ONNX needs the package onnxruntime: pip install 'spadnet[onnx]'\n")
