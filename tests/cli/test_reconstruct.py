"""``spadnet reconstruct`` writes on the input's own grid and tells how good it is."""

import csv
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import PIL.Image
import pytest
import torch

from spadnet.cli import main
from spadnet.data.io import read_image
from spadnet.evaluate.tokenizer_figures import psnr, ssim
from spadnet.inference.prepared import prepare_for, restore
from spadnet.inference.reconstruct import reconstruct
from spadnet.models.tokenizer import Tokenizer
from spadnet.weights.contract import contract_of
from spadnet.weights.hub import load_tokenizer, save_pretrained

Capture = pytest.CaptureFixture[str]


def tiny_tokenizer(in_chans: int = 1) -> Tokenizer:
    torch.manual_seed(0)
    return Tokenizer(
        in_chans=in_chans, widths=(8, 16), stem_stride=8, codebook_size=11, short_training=True
    ).eval()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with the tokenizer inside."""
    run = tmp_path_factory.mktemp("run")
    save_pretrained(tiny_tokenizer(), run / "tokenizer")
    return run


@pytest.fixture
def scans(pictures: Path) -> Path:
    """Three pictures, a colour one, and an oblique volume with background around its content."""
    i, j, k = np.indices((40, 9, 44))
    inside = (i - 18) ** 2 + (k - 20) ** 2 < 200
    voxels = np.where(inside, 100 + 3 * i + 9 * j, -50).astype(np.int16)
    turn = np.array([[0.8, 0, 0.6], [0, 1, 0], [-0.6, 0, 0.8]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-1, 4, 1])
    affine[:3, 3] = (5, 6, 7)
    nibabel.save(nibabel.Nifti1Image(voxels, affine), pictures / "scan.nii.gz")
    colour = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)
    PIL.Image.fromarray(colour).save(pictures / "colour.jpg")
    return pictures


def run(capsys: Capture, *argv: Any) -> tuple[int, str, str]:
    code = main(["reconstruct", *map(str, argv)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_outputs_lie_on_the_grids_of_the_inputs(
    scans: Path, tokenizer: Path, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "out"
    arguments = [f"in={scans}", f"out={out}", f"tokenizer={tokenizer}"]
    code, printed, err = run(capsys, *arguments)
    assert code == 0, err
    source, made = nibabel.load(scans / "scan.nii.gz"), nibabel.load(out / "scan.nii.gz")
    assert source.shape == made.shape
    np.testing.assert_allclose(made.affine, source.affine)
    assert made.get_data_dtype() == np.int16
    voxels = np.asarray(made.dataobj)
    assert voxels[0, 0, 0] == voxels.min()  # cut off: as dark as can be
    assert voxels.max() > voxels.min()
    for name in ("a.png", "inner/c.png"):
        assert PIL.Image.open(out / name).size == PIL.Image.open(scans / name).size
    assert PIL.Image.open(out / "colour.jpg.png").mode == "L"  # a grey model
    rows = list(csv.DictReader((out / "reconstruction.csv").open()))
    assert [row["key"] for row in rows] == [
        "a.png", "b.png", "colour.jpg", "inner/c.png", "scan.nii.gz",
    ]  # fmt: skip
    assert [row["degree"] for row in rows] == ["5", "5", "5", "5", "2"]
    mean = np.mean([float(row["psnr"]) for row in rows])
    assert printed.startswith(f"mean of 5 images: PSNR {mean:.2f} dB")
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    code, again, err = run(capsys, *arguments)
    assert (code, again) == (0, printed)
    assert "5 were there already" in err
    assert times == {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    (out / "a.png").unlink()
    assert "(4 were there already)" in run(capsys, *arguments)[2]
    assert "(0 were there already)" in run(capsys, *arguments, "overlap=0.5")[2]


def test_figures_are_those_of_what_the_model_made(
    scans: Path, tokenizer: Path, tmp_path: Path
) -> None:
    out = tmp_path / "one.nii"
    scan = scans / "scan.nii.gz"
    assert main(["reconstruct", f"in={scan}", f"out={out}", f"tokenizer={tokenizer}"]) == 0
    model = load_tokenizer(tokenizer / "tokenizer")
    image = read_image(scan)
    prepared = prepare_for(contract_of(model), image).image
    volume = torch.from_numpy(prepared.array)[None]
    missing = [-n % m for n, m in zip(volume.shape[2:], (4, 16, 16), strict=True)]
    pad = (0, missing[2], 0, missing[1], 0, missing[0])
    with torch.no_grad():
        made = model(torch.nn.functional.pad(volume, pad, mode="replicate"), 2)[0].clamp(0, 1)
    made = made[..., : volume.shape[2], : volume.shape[3], : volume.shape[4]]
    (row,) = csv.DictReader((tmp_path / "one.csv").open())
    assert float(row["psnr"]) == pytest.approx(psnr(made, volume), abs=1e-3)
    assert float(row["ssim"]) == pytest.approx(ssim(made, volume, 2), abs=1e-4)


def test_perfect_values_come_back_as_the_file_was(scans: Path) -> None:
    """The way there and back changes nothing but what percentiles clip."""
    for name in ("scan.nii.gz", "a.png", "colour.jpg"):
        image = read_image(scans / name)
        prepared = prepare_for(contract_of(tiny_tokenizer(in_chans=3)), image, repeat_grey=False)
        back = restore(prepared.image.array, prepared, image)
        assert back.dtype == image.array.dtype
        low, high = prepared.window
        expected = image.array.astype(float).clip(low, high)
        np.testing.assert_allclose(back, expected, atol=1)


def test_grey_passes_a_colour_model_as_one_channel(scans: Path) -> None:
    model = tiny_tokenizer(in_chans=3)
    made = reconstruct(model, read_image(scans / "scan.nii.gz"), contract=contract_of(model))
    assert made.values.shape[0] == 1
    volume = torch.from_numpy(made.prepared.image.array)
    small = reconstruct(
        model, read_image(scans / "scan.nii.gz"), contract=contract_of(model), window=(1, 1, 1)
    )
    assert small.values.shape == volume.shape
    assert not torch.allclose(small.values, made.values)


def test_images_beyond_the_training_are_warned_of_once(
    pictures: Path, tmp_path: Path, capsys: Capture
) -> None:
    folder = save_pretrained(tiny_tokenizer(), tmp_path / "t", training={"degrees": [0, 1]})
    code, _, err = run(capsys, f"in={pictures}", f"out={tmp_path / 'out'}", f"tokenizer={folder}")
    assert code == 0, err
    assert err.count("degree 5 of anisotropy was not in the training (degrees 0, 1)") == 1


def test_unusable_files_are_listed(
    scans: Path, tokenizer: Path, tmp_path: Path, capsys: Capture
) -> None:
    (scans / "b.png").write_bytes((scans / "b.png").read_bytes()[:60])
    out = tmp_path / "out"
    code, printed, err = run(capsys, f"in={scans}", f"out={out}", f"tokenizer={tokenizer}")
    assert code == 0
    assert printed.startswith("mean of 4 images")
    assert "b.png" in err
    assert "b.png" in (out / "quarantine.jsonl").read_text()
    code, printed, err = run(
        capsys, f"in={scans / 'b.png'}", f"out={tmp_path / 'x.png'}", f"tokenizer={tokenizer}"
    )
    assert (code, printed) == (1, "")
    assert err.splitlines()[-1].startswith("error: ")
    assert not (tmp_path / "x.png").exists()


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        (["tokenizer=null"], 2, "tokenizer=FOLDER is missing"),
        (["tokenizer=absent"], 1, "absent: no such folder"),
        (["window=[1,2]"], 2, "window must be three positive numbers of tokens, got [1, 2]"),
        (["overlap=1"], 2, "overlap must be at least 0 and below 1, got 1"),
        (["out=null"], 2, "out=FOLDER is missing"),
    ],
)
def test_mistakes_are_one_line(
    changes: list[str], code: int, message: str, scans: Path, tokenizer: Path, capsys: Capture
) -> None:
    usual = [f"in={scans}", f"out={scans / 'out'}", f"tokenizer={tokenizer}"]
    names = {change.partition("=")[0] for change in changes}
    kept = [text for text in usual if text.partition("=")[0] not in names]
    found, _, err = run(capsys, *kept, *changes)
    assert (found, err.count("\n")) == (code, 1)
    assert message in err


def test_inputs_are_never_overwritten(scans: Path, tokenizer: Path, capsys: Capture) -> None:
    before = (scans / "scan.nii.gz").read_bytes()
    code, _, err = run(capsys, f"in={scans}", f"out={scans}", f"tokenizer={tokenizer}")
    assert code == 2
    assert "is an input; choose another folder" in err
    assert (scans / "scan.nii.gz").read_bytes() == before
    scan = scans / "scan.nii.gz"
    code, _, err = run(capsys, f"in={scan}", f"out={scan}", f"tokenizer={tokenizer}")
    assert code == 2
    assert scan.read_bytes() == before


def test_volumes_of_a_file_are_images_of_their_own(
    tokenizer: Path, tmp_path: Path, capsys: Capture
) -> None:
    voxels = np.random.default_rng(0).integers(1, 99, (33, 32, 6, 3)).astype(np.int16)
    film = nibabel.Nifti1Image(voxels, np.diag([1, 1, 5, 1]))
    nibabel.save(film, tmp_path / "film.nii.gz")
    for out in ("out", "made.nii"):
        arguments = [f"in={tmp_path / 'film.nii.gz'}", f"out={tmp_path / out}"]
        code, printed, err = run(capsys, *arguments, f"tokenizer={tokenizer}")
        assert code == 0, err
        assert printed.startswith("mean of 3 images")
        assert "(3 were there" in run(capsys, *arguments, f"tokenizer={tokenizer}")[2]
    names = [f"film[{index}].nii.gz" for index in range(3)]
    assert sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz")) == names
    assert [path.name for path in sorted(tmp_path.glob("made*.nii"))] == [
        f"made[{index}].nii" for index in range(3)
    ]
    assert nibabel.load(tmp_path / "made[2].nii").shape == (33, 32, 6)
    (tmp_path / "out" / names[1]).unlink()
    arguments = [f"in={tmp_path / 'film.nii.gz'}", f"out={tmp_path / 'out'}"]
    assert "(0 were there" in run(capsys, *arguments, f"tokenizer={tokenizer}")[2]
    rows = list(csv.DictReader((tmp_path / "out" / "reconstruction.csv").open()))
    assert [row["output"] for row in rows] == names
