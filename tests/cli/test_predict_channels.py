"""``spadnet predict`` takes images whose channels are files of their own, as training does."""

import csv
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from spadnet.cli import main

Capture = pytest.CaptureFixture[str]
Predict = Callable[..., tuple[int, str]]
CASES = ("c0", "c1", "c2")
PHASES = ("in_phase", "out_phase")
SMALL = (
    "model=spad_unet_tiny",
    "model.in_chans=2",
    "data.crop=[16,32,32]",
    "data.batch_size=2",
    "data.read_workers=0",
    "trainer.accelerator=cpu",
    "trainer.precision=32-true",
    "trainer.max_steps=2",
    "validate.every_steps=2",
    "logger.tensorboard=false",
    "callbacks.show_progress=false",
    "test=false",
)


def write(file: Path, array: np.ndarray, *, z: float = 4.0, shift: float = 0.0) -> None:
    affine = np.diag([1.0, 1.0, z, 1.0])
    affine[0, 3] = shift
    file.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), file)  # type: ignore[no-untyped-call]


def voxels(file: Path) -> np.ndarray:
    return np.asarray(nib.load(file).dataobj)  # type: ignore[attr-defined]


def rows_of(file: Path) -> dict[str, dict[str, str]]:
    with open(file, newline="") as lines:
        return {row["key"]: row for row in csv.DictReader(lines)}


def write_table(file: Path, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> Path:
    with open(file, "w", newline="") as lines:
        csv.writer(lines).writerows([columns, *rows])
    return file


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cases of two phases, told by a table and as nnU-Net tells them, and a model of each."""
    folder = tmp_path_factory.mktemp("phases")
    rng = np.random.default_rng(0)
    raw = folder / "raw"
    rows = []
    for case, split in zip(CASES, ("train", "train", "val"), strict=True):
        label = np.zeros((22, 24, 6), np.uint8)
        label[6:14, 8:16, 2:4] = 1
        write(folder / "labels" / f"{case}.nii.gz", label)
        write(raw / "labelsTr" / f"{case}.nii.gz", label)
        for number, phase in enumerate(PHASES):
            array = (rng.random(label.shape) * 50 + (number + 1) * 80 * label).astype(np.int16)
            write(folder / phase / f"{case}.nii.gz", array)
            write(raw / "imagesTr" / f"{case}_{number:04d}.nii.gz", array)
        rows.append(
            (*(f"{phase}/{case}.nii.gz" for phase in PHASES), f"labels/{case}.nii.gz", split)
        )
    write_table(folder / "table.csv", (*PHASES, "label", "split"), rows)
    description = {
        "channel_names": {"0": "in", "1": "out"},
        "labels": {"background": 0, "blob": 1},
        "file_ending": ".nii.gz",
    }
    (raw / "dataset.json").write_text(json.dumps(description))
    for argv in (
        (
            f"data.path={folder / 'table.csv'}",
            f"data.image_columns=[{','.join(PHASES)}]",
            "data.classes=[background,blob]",
            f"out={folder / 'table'}",
        ),
        (f"data.path={raw}", "data.val_share=0.34", f"out={folder / 'nnunet'}"),
    ):
        assert main(["finetune", *SMALL, *argv]) == 0
    return folder


@pytest.fixture
def data(trained: Path, tmp_path: Path) -> Path:
    """A copy to be changed."""
    return Path(shutil.copytree(trained, tmp_path / "data"))


@pytest.fixture
def predict(capsys: Capture, tmp_path: Path) -> Predict:
    """Run the verb into ``tmp_path / "out"``; the exit code and what it told."""

    def run(source: Path, model: Path, *argv: str) -> tuple[int, str]:
        capsys.readouterr()
        options = [f"in={source}", f"model={model}", f"out={tmp_path / 'out'}", "device=cpu"]
        code = main(["predict", *options, *argv])
        return code, capsys.readouterr().err

    return run


def test_the_table_of_the_training_is_one_of_images(
    data: Path, tmp_path: Path, predict: Predict
) -> None:
    code, err = predict(data / "table.csv", data / "table")
    assert code == 0, err
    out = tmp_path / "out"
    assert list(rows_of(out / "predictions.csv")) == [f"in_phase/{case}.nii.gz" for case in CASES]
    assert not (out / "quarantine.jsonl").exists()
    mask = nib.load(out / "in_phase" / "c0.nii.gz")  # type: ignore[attr-defined]
    first = nib.load(data / "in_phase" / "c0.nii.gz")  # type: ignore[attr-defined]
    assert mask.header.get_sform().tobytes() == first.header.get_sform().tobytes()
    found = np.asarray(mask.dataobj)
    assert 0 < found.mean() < 1
    # The same channels in one file give the same mask; in another order they do not.
    both = [voxels(data / phase / "c0.nii.gz") for phase in PHASES]
    for name, order in (("both", both), ("turned", both[::-1])):
        file = data / f"{name}.nii.gz"
        write(file, np.stack(order, axis=-1)[:, :, :, None])
        code, err = predict(file, data / "table")
        assert code == 0, err
    np.testing.assert_array_equal(voxels(out / "both.nii.gz"), found)
    assert (voxels(out / "turned.nii.gz") != found).any()


def test_a_changed_channel_is_predicted_again(data: Path, predict: Predict) -> None:
    arguments = (data / "table.csv", data / "table")
    assert "3 images predicted (0 were there already)" in predict(*arguments)[1]
    assert "0 images predicted (3 were there already)" in predict(*arguments)[1]
    second = data / "out_phase" / "c1.nii.gz"
    os.utime(second, ns=(0, 0))
    assert "1 images predicted (2 were there already)" in predict(*arguments)[1]
    second.unlink()
    code, err = predict(*arguments)
    assert code == 0
    assert f"{second}: no such file" in err


def test_files_of_a_case_are_told_by_their_names(
    data: Path, tmp_path: Path, predict: Predict
) -> None:
    images = data / "imagesTs"
    shutil.copytree(data / "raw" / "imagesTr", images)
    (images / "c1_0001.nii.gz").unlink()
    (images / "c2_0000.nii.gz").unlink()
    (images / "c2_0001.nii.gz").rename(images / "c2_0002.nii.gz")
    code, err = predict(images, data / "nnunet")
    assert code == 0, err
    out = tmp_path / "out"
    assert list(rows_of(out / "predictions.csv")) == ["c0.nii.gz"]
    faults = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    assert [fault["file"] for fault in faults] == ["c1.nii.gz", "c2_0002.nii.gz"]
    assert f"{images / 'c1_0001.nii.gz'}: no such file" in faults[0]["reason"]
    assert "1 of 2 channels" in faults[1]["reason"]
    mask = voxels(out / "c0.nii.gz")
    # One file stands for its case, and a table may name the columns as it likes.
    (out / "c0.nii.gz").unlink()
    assert predict(images / "c0_0001.nii.gz", data / "nnunet")[0] == 0
    np.testing.assert_array_equal(voxels(out / "c0.nii.gz"), mask)
    files = ("imagesTs/c0_0000.nii.gz", "imagesTs/c0_0001.nii.gz")
    table = write_table(data / "other.csv", ("key", "a", "b"), [("named", *files)])
    assert predict(table, data / "nnunet", "image_columns=[a,b]")[0] == 0
    np.testing.assert_array_equal(voxels(out / "named.nii.gz"), mask)


def test_channels_on_another_grid_are_told(data: Path, predict: Predict) -> None:
    moved = data / "out_phase" / "c1.nii.gz"
    write(moved, voxels(moved), shift=3.0)
    code, err = predict(data / "table.csv", data / "table")
    assert code == 0
    assert f"left out: {moved}: its origin" in err
    assert "2 images predicted" in err


@pytest.mark.parametrize(
    ("source", "argv", "code", "message"),
    [
        ("table.csv", ("image_columns=[in_phase]",), 1, "none of the 3 files can be used"),
        ("table.csv", ("image_columns=[in_phase,out_fase]",), 1, "no column in_phase, out_fase;"),
        ("table.csv", ("image_columns=[in_phase,out_phase,label]",), 2, "names 3 files"),
        ("table.csv", ("image_columns=in_phase",), 2, "must be names such as"),
        ("in_phase", ("image_columns=[in_phase,out_phase]",), 2, "in_phase is none"),
        ("bare.csv", (), 1, "no column in_phase, out_phase or path; there are first"),
        ("empty.csv", (), 1, "line 2 has no 'out_phase'"),
        ("raw/imagesTr", ("out=IN",), 2, "holds channels of c0.nii.gz"),
    ],
)
def test_mistakes_are_one_line(
    data: Path,
    predict: Predict,
    source: str,
    argv: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    write_table(data / "bare.csv", ("first",), [("a",)])
    write_table(data / "empty.csv", PHASES, [("in_phase/c0.nii.gz", "")])
    argv = tuple(word.replace("=IN", f"={data / source}") for word in argv)
    found, err = predict(data / source, data / "table", *argv)
    assert found == code, err
    assert message in err.splitlines()[-1]
