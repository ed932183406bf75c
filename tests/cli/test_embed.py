"""``spadnet embed`` writes features, goes on where it stopped, and names what it cannot use."""

import errno
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK
import torch
from safetensors import safe_open
from torch import nn

from spadnet.cli import main
from spadnet.inference.embedding_files import read_table
from spadnet.inference.encoder import load_encoder
from spadnet.models.tokenizer import Tokenizer
from spadnet.models.vit import SpadViT
from spadnet.weights.hub import save_pretrained

Capture = pytest.CaptureFixture[str]


def make_encoder(folder: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    vit = SpadViT(in_chans=1, embed_dim=16, depth=1, num_heads=2, pos_grid=(2, 2, 2))
    for parameter in vit.parameters():
        nn.init.normal_(parameter, std=0.1)
    return save_pretrained(vit, folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder(tmp_path_factory.mktemp("run") / "encoder")


@pytest.fixture
def scans(pictures: Path) -> Path:
    """Three pictures, a volume, and a file that is no image."""
    voxels = np.random.default_rng(0).integers(1, 99, (33, 32, 6)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([1, 1, 5, 1])), pictures / "scan.nii.gz")
    return pictures


def embed(capsys: Capture, *argv: Any) -> tuple[int, str]:
    code = main(["embed", *map(str, argv)])
    captured = capsys.readouterr()
    assert captured.out == ""
    return code, captured.err


@pytest.mark.parametrize("format", ["npz", "safetensors"])
def test_folder_gets_one_file_per_image(
    format: str, scans: Path, model: Path, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "my features"
    arguments = [f"in={scans}", f"out={out}", f"model={model}", f"format={format}"]
    code, err = embed(capsys, *arguments)
    assert code == 0
    assert "4 images embedded" in err
    names = ["a.png", "b.png", "inner/c.png", "scan.nii.gz"]
    files = [out / f"{name}.{format}" for name in names]
    assert sorted(path for path in out.rglob("*") if path.is_file()) == sorted(files)
    expected = load_encoder(model)(scans / "scan.nii.gz")
    if format == "npz":
        found = dict(np.load(files[3]))
    else:
        with safe_open(files[3], framework="np") as content:
            found = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
    np.testing.assert_allclose(found["cls"], expected.cls, atol=1e-6)
    np.testing.assert_allclose(found["tokens"], expected.tokens, atol=1e-6)
    assert found["degree"] == 2
    np.testing.assert_allclose(found["spacing"], expected.spacing)
    before = {file: file.stat().st_mtime_ns for file in files}
    code, err = embed(capsys, *arguments)
    assert code == 0
    assert "0 images embedded" in err
    assert "4 were there already" in err
    assert before == {file: file.stat().st_mtime_ns for file in files}


def test_second_run_does_what_is_missing_changed_or_damaged(
    scans: Path, model: Path, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "features"
    arguments = [f"in={scans}", f"out={out}", f"model={model}"]
    embed(capsys, *arguments)
    (out / "a.png.npz").unlink()
    (out / "b.png.npz").write_bytes((out / "b.png.npz").read_bytes()[:300])
    (out / ".a.png.npz.1.part").write_bytes(b"of a killed run")
    shutil.copy(scans / "a.png", scans / "inner/c.png")
    os.utime(scans / "inner/c.png", (1, 1))
    assert "3 images embedded" in embed(capsys, *arguments)[1]
    assert not list(out.rglob("*.part"))
    other = make_encoder(tmp_path / "other", seed=1)
    assert "4 images embedded" in embed(capsys, *arguments[:2], f"model={other}")[1]
    assert "4 images embedded" in embed(capsys, *arguments, "max_tokens=2")[1]


@pytest.mark.parametrize("format", ["npz", "safetensors", "parquet"])
def test_file_is_a_table_of_all_class_tokens(
    format: str, scans: Path, model: Path, tmp_path: Path, capsys: Capture
) -> None:
    if format == "parquet":
        pytest.importorskip("pyarrow")
    out = tmp_path / f"all.{format}"
    arguments = [f"in={scans}", f"out={out}", f"model={model}"]
    assert embed(capsys, *arguments)[0] == 0
    rows = read_table(out)
    assert [row.key for row in rows] == ["a.png", "b.png", "inner/c.png", "scan.nii.gz"]
    assert [row.degree for row in rows] == [5, 5, 5, 2]
    encoder = load_encoder(model)
    np.testing.assert_allclose(rows[3].cls, encoder(scans / "scan.nii.gz").cls, atol=1e-6)
    np.testing.assert_allclose(rows[3].spacing, (5, 1, 1))
    before = out.stat().st_mtime_ns
    assert "0 images embedded" in embed(capsys, *arguments)[1]
    assert out.stat().st_mtime_ns == before
    (scans / "a.png").unlink()
    assert "0 images embedded" in embed(capsys, *arguments)[1]
    assert [row.key for row in read_table(out)] == ["b.png", "inner/c.png", "scan.nii.gz"]
    out.write_bytes(b"something else")
    code, err = embed(capsys, *arguments)
    assert code == 1
    assert "not a table of embeddings" in err
    assert out.read_bytes() == b"something else"


def test_table_brings_spacing_and_names(scans: Path, model: Path, tmp_path: Path) -> None:
    table = tmp_path / "list.csv"
    table.write_text(f"path,key,spacing\n{scans / 'scan.nii.gz'},../patient 1,2.5 1 1\n")
    out = tmp_path / "features"
    assert main(["embed", f"in={table}", f"out={out}", f"model={model}"]) == 0
    (file,) = out.rglob("*.npz")
    assert file == out / "patient 1.npz"  # within the folder, whatever the table says
    assert np.load(file)["degree"] == 1


def test_one_image_and_one_file(scans: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "scan.npz"
    assert main(["embed", f"in={scans / 'scan.nii.gz'}", f"out={out}", f"model={model}"]) == 0
    assert np.load(out)["tokens"].ndim == 4
    assert np.load(out)["cls"].shape == (16,)


def test_unusable_files_are_listed_and_the_others_go_on(
    scans: Path, model: Path, tmp_path: Path, capsys: Capture
) -> None:
    whole = (scans / "scan.nii.gz").read_bytes()
    (scans / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    (scans / "empty.png").write_bytes(b"")
    out = tmp_path / "features"
    arguments = [f"in={scans}", f"out={out}", f"model={model}"]
    code, err = embed(capsys, *arguments)
    assert code == 0
    assert "4 images embedded" in err
    assert "2 files cannot be used" in err
    listed = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    assert [fault["file"] for fault in listed] == ["cut.nii.gz", "empty.png"]
    assert "truncated" in listed[0]["reason"]
    (scans / "cut.nii.gz").write_bytes(whole)
    (scans / "empty.png").unlink()
    assert "1 images embedded" in embed(capsys, *arguments)[1]
    assert not (out / "quarantine.jsonl").exists()


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        (["in=absent"], 1, "absent: no such file or folder"),
        (["model=absent"], 1, "absent: no such folder"),
        (["in=null"], 2, "in=FILE is missing"),
        (["out=null"], 2, "out=FOLDER is missing"),
        (["model=null"], 2, "model=FOLDER is missing"),
        (["modle=x"], 2, "did you mean 'model'"),
        (["format=npy"], 2, "did you mean 'npz'"),
        (["format=safetensors", "out=x.npz"], 2, "disagree"),
        (["batch_size=0"], 2, "batch_size must be at least 1"),
        (["max_tokens=many"], 2, "max_tokens must be a whole number"),
        (["device=gpu"], 2, "unknown device 'gpu'"),
        (["threads=0"], 2, "threads must be a positive whole number"),
    ],
)
def test_mistakes_are_one_line(
    changes: list[str], code: int, message: str, scans: Path, model: Path, tmp_path: Path,
    capsys: Capture, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    names = {change.partition("=")[0] for change in changes}
    usual = [f"in={scans}", "out=features", f"model={model}"]
    arguments = [text for text in usual if text.partition("=")[0] not in names] + changes
    found, err = embed(capsys, *arguments)
    assert (found, err.count("\n")) == (code, 1)
    assert message in err
    assert not (tmp_path / "features").exists()


def test_tokenizer_is_not_taken_for_an_encoder(
    scans: Path, tmp_path: Path, capsys: Capture
) -> None:
    folder = save_pretrained(Tokenizer(in_chans=1, widths=(8, 16), stem_stride=8), tmp_path / "t")
    code, err = embed(capsys, f"in={scans}", f"out={tmp_path / 'f'}", f"model={folder}")
    assert code == 1
    assert err.endswith("holds a Tokenizer, not a SpadViT; spadnet.load_tokenizer reads it\n")


def test_absent_package_names_the_extra(
    scans: Path, model: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    code, err = embed(capsys, f"in={scans}", f"out={tmp_path / 'f.parquet'}", f"model={model}")
    assert code == 1
    assert err == "error: parquet needs the package pyarrow: pip install 'spadnet[parquet]'\n"


def test_full_disk_leaves_nothing_half_written(
    scans: Path, model: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    code, err = embed(capsys, f"in={scans}", f"out={tmp_path / 'f'}", f"model={model}")
    assert code == 1
    assert err.splitlines()[-1].endswith("a.png.npz: No space left on device")
    assert not [path for path in (tmp_path / "f").rglob("*") if path.is_file()]


@pytest.mark.parametrize("out", ["features", "all.npz"])
def test_volumes_of_a_file_are_images_of_their_own(
    out: str, scans: Path, model: Path, tmp_path: Path, capsys: Capture
) -> None:
    voxels = np.random.default_rng(0).integers(1, 99, (33, 32, 6, 3)).astype(np.int16)
    voxels[..., 1] = 7  # nothing to see
    film = nibabel.Nifti1Image(voxels, np.diag([1, 1, 5, 1]))
    nibabel.save(film, scans / "film.nii.gz")
    arguments = [f"in={scans}", f"out={tmp_path / out}", f"model={model}", "batch_size=2"]
    code, err = embed(capsys, *arguments)
    assert code == 0
    assert "6 images embedded" in err
    assert "film.nii.gz[1]: " in err
    voxels[..., 1] = voxels[..., 0]
    nibabel.save(film, scans / "film.nii.gz")
    assert "3 images embedded" in embed(capsys, *arguments)[1]
    assert "0 images embedded" in embed(capsys, *arguments)[1]
    names = [f"film.nii.gz[{index}]" for index in range(3)]
    nibabel.save(nibabel.Nifti1Image(voxels[..., 2], film.affine), tmp_path / "last.nii.gz")
    expected = load_encoder(model)(tmp_path / "last.nii.gz").cls
    if out == "features":
        files = [tmp_path / out / f"{name}.npz" for name in names]
        np.testing.assert_allclose(np.load(files[2])["cls"], expected, atol=1e-6)
        files[1].unlink()
        assert "3 images embedded" in embed(capsys, *arguments)[1]
        assert files[1].is_file()
    else:
        rows = {row.key: row for row in read_table(tmp_path / out)}
        assert sorted(rows) == ["a.png", "b.png", *names, "inner/c.png", "scan.nii.gz"]
        np.testing.assert_allclose(rows[names[2]].cls, expected, atol=1e-6)


def test_each_dicom_series_of_a_folder_is_an_image(
    model: Path, tmp_path: Path, capsys: Capture
) -> None:
    folder, out = tmp_path / "dicom", tmp_path / "features"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in ("a.dcm", "b.dcm"):
        picture = SimpleITK.GetImageFromArray(rng.integers(0, 99, (1, 32, 48)).astype(np.uint16))
        SimpleITK.WriteImage(picture, folder / name)
    arguments = [f"in={folder}", f"out={out}", f"model={model}"]
    assert "2 images embedded" in embed(capsys, *arguments)[1]
    assert len(list(out.rglob("*.npz"))) == 2
    assert "0 images embedded" in embed(capsys, *arguments)[1]
