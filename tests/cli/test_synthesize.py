"""``spadnet synthesize``: what it writes, that it continues, and what it says of mistakes."""

import json
import resource
from pathlib import Path

import nibabel as nib
import numpy as np
import PIL.Image
import pytest
import torch

from spadnet.cli import main
from spadnet.cli.configure import configure
from spadnet.cli.data import build_data
from spadnet.cli.training import plain
from spadnet.cli.usage import UsageError
from spadnet.data.io import read_image
from spadnet.spacing import Spacing

Capture = pytest.CaptureFixture[str]


def synthesize(out: Path, *arguments: str) -> int:
    return main(["synthesize", f"out={out}", *arguments])


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


@pytest.fixture
def label_file(tmp_path: Path) -> Path:
    """A label map of 2 x 1 x 1 mm with labels 0, 17 and 2035, in a folder with a space."""
    labels = np.zeros((20, 18, 12), np.int16)
    labels[4:16, 4:14, 2:10] = 17
    labels[8:12, 6:10, 4:8] = 2035
    folder = tmp_path / "my maps"
    folder.mkdir()
    nib.save(nib.Nifti1Image(labels, np.diag([1, 1, 2, 1])), folder / "case 1.nii.gz")
    return folder / "case 1.nii.gz"


def test_volumes_are_nifti_with_labels_and_spacing(tmp_path: Path) -> None:
    out = tmp_path / "a folder"
    arguments = ["num=2", "degree=2", "size=[4,24,24]", "save=[image,labels,clean,bias]", "views=2"]
    assert synthesize(out, *arguments) == 0
    assert {path.name for path in out.iterdir()} == {
        *("images", "labels", "clean", "bias"),
        *("samples.jsonl", "settings.json", "contact_sheet.png"),
    }
    for row in rows(out):
        image, labels, clean, bias = (
            read_image(out / row[name]) for name in ("path", "labels", "clean", "bias")
        )
        assert image.array.shape == labels.array.shape == (1, 4, 24, 24)
        assert image.spacing.degree() == row["degree"] == 2
        np.testing.assert_allclose(image.spacing, row["spacing"], rtol=1e-6)
        assert image.array.dtype == np.float32
        assert 0 <= image.array.min() < image.array.max() <= 1
        assert labels.array.dtype == np.uint8
        assert len(np.unique(labels.array)) > 1
        assert 0 <= clean.array.min() <= clean.array.max() <= 1
        assert bias.array.min() > 0
        assert [read_image(out / view).array.shape for view in row["views"]] == [(1, 4, 24, 24)] * 2
    with PIL.Image.open(out / "contact_sheet.png") as sheet:
        assert np.array(sheet).std() > 10


def test_2d_images_are_png(tmp_path: Path) -> None:
    assert synthesize(tmp_path / "out", "num=1", "degree=5", "size=48") == 0
    (row,) = rows(tmp_path / "out")
    for name in ("path", "labels"):
        assert row[name].endswith(".png")
        image = read_image(tmp_path / "out" / row[name])
        assert image.array.shape == (1, 1, 48, 48)
        assert image.array.dtype == np.uint8
        assert image.spacing.degree() == 5


def test_same_command_changes_nothing_and_more_images_continue(
    tmp_path: Path, capsys: Capture
) -> None:
    out, other = tmp_path / "out", tmp_path / "other"
    assert synthesize(out, "num=2", "size=[1,16,16]") == 0
    first = contents(out)
    stamps = {path: path.stat().st_mtime_ns for path in (out / "images").iterdir()}
    assert synthesize(out, "num=2", "size=[1,16,16]") == 0
    assert "0 samples written" in capsys.readouterr().err
    assert contents(out) == first
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    assert synthesize(out, "num=3", "size=[1,16,16]") == 0
    assert synthesize(other, "num=3", "size=[1,16,16]") == 0
    assert contents(out) == contents(other)


def test_interrupted_run_is_continued(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert synthesize(out, "num=2", "size=[2,16,16]") == 0
    whole = contents(out)
    (out / "labels" / "synthetic_000001.nii.gz").unlink()
    (out / "contact_sheet.png").unlink()
    (out / "samples.jsonl").unlink()
    (out / "images" / ".synthetic_000001.1234.nii.gz").write_bytes(b"half")
    assert synthesize(out, "num=2", "size=[2,16,16]") == 0
    assert contents(out) == whole


def test_other_settings_are_refused_or_replace(tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out"
    assert synthesize(out, "num=2", "size=[1,16,16]") == 0
    (out / "images" / "mine.txt").write_text("keep me")
    before = contents(out)
    assert synthesize(out, "num=1", "size=[1,16,16]", "seed=1") == 1
    assert "was made with seed=0, not 1; give another" in capsys.readouterr().err
    assert contents(out) == before
    assert synthesize(out, "num=1", "size=[1,16,16]", "seed=1", "overwrite=true") == 0
    after = contents(out)
    assert after["images/mine.txt"] == b"keep me"
    assert "images/synthetic_000001.png" not in after
    assert after["images/synthetic_000000.png"] != before["images/synthetic_000000.png"]


def test_label_maps_keep_their_grid_and_numbers(label_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert synthesize(out, f"labels={label_file.parent}", "num=2") == 0
    for row in rows(out):
        assert row["label_map"] == "case 1.nii.gz"
        labels = read_image(out / row["labels"])
        assert labels.array.shape == (1, 12, 18, 20)
        assert labels.spacing == Spacing(2, 1, 1)
        assert set(np.unique(labels.array)) == {0, 17, 2035}
    flat = tmp_path / "flat"
    assert synthesize(flat, f"labels={label_file}", "num=1", "degree=5", "size=[1,16,16]") == 0
    labels = read_image(flat / rows(flat)[0]["labels"]).array
    assert labels.dtype == np.uint16
    assert set(np.unique(labels)) <= {0, 17, 2035}


def test_label_maps_that_have_changed_are_noticed(
    label_file: Path, tmp_path: Path, capsys: Capture
) -> None:
    arguments = [f"labels={label_file}", "num=1"]
    assert synthesize(tmp_path / "out", *arguments) == 0
    image = nib.load(label_file)
    labels = np.asanyarray(image.dataobj).copy()
    labels[9, 9, 4] = 0
    nib.save(nib.Nifti1Image(labels, image.affine), label_file)
    assert synthesize(tmp_path / "out", *arguments) == 1
    assert "was made with labels=" in capsys.readouterr().err


def save_map(path: Path, array: np.ndarray) -> Path:
    nib.save(nib.Nifti1Image(array, np.eye(4)), path)
    return path


def test_what_is_no_label_map_is_named(tmp_path: Path, capsys: Capture) -> None:
    rng = np.random.default_rng(0)
    scan = save_map(tmp_path / "scan.nii", rng.random((6, 6, 6), np.float32))
    assert synthesize(tmp_path / "out", f"labels={scan}") == 1
    assert "scan.nii: not a label map: 0." in capsys.readouterr().err
    many = save_map(tmp_path / "ct.nii", np.arange(1000, dtype=np.int16).reshape(10, 10, 10))
    assert synthesize(tmp_path / "out", f"labels={many}") == 1
    assert "ct.nii: 1000 labels, at most 256" in capsys.readouterr().err
    colour = tmp_path / "photo.png"
    PIL.Image.fromarray(rng.integers(9, size=(8, 8, 3), dtype=np.uint8)).save(colour)
    assert synthesize(tmp_path / "out", f"labels={colour}") == 1
    assert "photo.png: 3 channels; a label map has one" in capsys.readouterr().err
    (tmp_path / "broken.nii.gz").write_bytes(b"")
    assert synthesize(tmp_path / "out", f"labels={tmp_path / 'broken.nii.gz'}") == 1
    assert "broken.nii.gz: the file is empty" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "out=FOLDER is missing"),
        (["out=x", "nun=3"], 2, "unknown key 'nun'; did you mean 'num'?"),
        (["out=x", "num=0"], 2, "num must be at least 1"),
        (["out=x", "num=many"], 2, "num must be a whole number"),
        (["out=x", "source=field"], 2, "unknown source 'field'; did you mean 'fields'?"),
        (["out=x", "source=labels"], 2, "labels=FOLDER is missing"),
        (["out=x", "source=shapes", "labels=y"], 2, "needs source=labels"),
        (["out=x", "labels=/does/not/exist"], 1, "/does/not/exist: no such file"),
        (["out=x", "degree=6"], 2, "degree must be a whole number from 0 to 5"),
        (["out=x", "degree=2", "spacing=[1,1,1]"], 2, "degree or spacing, not both"),
        (["out=x", "spacing=[0,1,1]", "size=8"], 1, "spacing must be positive"),
        (["out=x", "spacing=2"], 2, "spacing must be [z,y,x]"),
        (["out=x", "size=[8,8,8,8]"], 2, "size must be positive whole numbers"),
        (["out=x", "size=big"], 2, "size must be positive whole numbers"),
        (["out=x", "size=[0,8,8]"], 2, "size must be positive whole numbers"),
        (["out=x", "size=[100000,100000,100000]"], 2, "more than"),
        (["out=x", "size=[4,8,8]", "degree=5"], 1, "a planar spacing needs a single slice"),
        (["out=x", "severity=2"], 2, "severity must be a number from 0 to 1"),
        (["out=x", "severities=[0.1]"], 2, "severities must be two numbers"),
        (["out=x", "contrast=other"], 2, "contrast must be same or random"),
        (["out=x", "num_labels=1000"], 2, "num_labels must be a whole number from 2 to 256"),
        (["out=x", "save=[image,label]"], 2, "unknown part 'label'; did you mean 'labels'?"),
        (["out=x", "save=[labels]"], 2, "save must hold image"),
    ],
)
def test_mistake_is_told_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["synthesize", *arguments]) == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert list(tmp_path.iterdir()) == []


def test_out_that_is_a_file_is_named(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "out").write_text("mine")
    assert synthesize(tmp_path / "out", "size=[1,16,16]") == 1
    assert str(tmp_path / "out") in capsys.readouterr().err
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize(
    ("size", "limit"), [("size=[1,64,64]", 2000), ("size=[8,32,32]", 6000)], ids=["2d", "3d"]
)
def test_disk_that_is_full_is_told_and_leaves_nothing_half_written(
    tmp_path: Path, capsys: Capture, size: str, limit: int
) -> None:
    out = tmp_path / "out"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        assert synthesize(out, "num=1", size) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "synthetic_000000" in lines[0]
    assert "File too large" in lines[0]
    assert [path.name for path in out.rglob("*") if path.is_file()] == ["settings.json"]


def test_samples_can_be_prepared_for_training(tmp_path: Path) -> None:
    assert synthesize(tmp_path / "out", "num=2", "size=[4,32,32]", "views=1") == 0
    table, store = tmp_path / "out" / "samples.jsonl", tmp_path / "store"
    assert main(["preprocess", f"in={table}", f"out={store}", "workers=0"]) == 0
    assert len((store / "catalogue.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("choice", [["data=synthesis"], ["data.synthetic_share=1"]])
def test_training_sees_synthetic_images_alone(choice: list[str]) -> None:
    config = configure(
        "pretrain_tokenizer", [*choice, "data.tokens=[1,1,1]", "data.token_budget=2"]
    )
    assert config is not None
    dataset = build_data(plain(config), in_chans=1).module.dataset
    for step in range(2):
        for batch in dataset[step]:
            assert all(key.startswith("synthetic-") for key in batch.keys)
            assert {Spacing(*row).degree() for row in batch.spacing.tolist()} == {batch.degree}


def test_anatomy_of_training_is_chosen_and_a_misspelt_one_is_named() -> None:
    def images(*choice: str) -> list[torch.Tensor]:
        arguments = ["data=synthesis", "data.tokens=[1,1,1]", "data.token_budget=2", *choice]
        config = configure("pretrain_tokenizer", arguments)
        assert config is not None
        return [batch.image for batch in build_data(plain(config), in_chans=1).module.dataset[0]]

    fields, shapes = images(), images("data.synthetic_anatomy=shapes")
    assert not any(torch.equal(a, b) for a, b in zip(fields, shapes, strict=True))
    with pytest.raises(UsageError, match="did you mean 'shapes'"):
        images("data.synthetic_anatomy=shape")


def test_tokenizer_trains_from_synthesis_alone(tmp_path: Path) -> None:
    arguments = [
        "pretrain-tokenizer",
        "data=synthesis",
        "data.tokens=[1,2,2]",
        "data.token_budget=8",
        f"out={tmp_path / 'run'}",
        "trainer.max_steps=2",
        "trainer.accelerator=cpu",
        "trainer.precision=32-true",
        "logger.tensorboard=false",
        "model.codebook_size=8",
        "code_start.share=0",
    ]
    assert main(arguments) == 0
    assert "spadnet synthesis" in (tmp_path / "run" / "tokenizer" / "README.md").read_text()


def test_help_has_an_example_that_works(capsys: Capture) -> None:
    assert main(["synthesize", "--help"]) == 0
    out = capsys.readouterr().out
    for word in ("spadnet synthesize out=", "contact_sheet.png", "samples.jsonl", "labels="):
        assert word in out
