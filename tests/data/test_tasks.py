"""Descriptions of labelled images, the splits made from them, and what is refused."""

import csv
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from spadnet.data.task_forms import Columns, read_task
from spadnet.data.tasks import (
    Case,
    TaskData,
    check_task,
    class_counts,
    hold_out,
    patient_of,
    rehearsed,
    subsample,
)


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(path)
    return path


def table(path: Path, rows: list[dict[str, Any]]) -> Path:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def cases(*targets: float, split: Any = "train") -> list[Case]:
    return [
        Case(f"{split}{i}", (Path(__file__),), (target,), split) for i, target in enumerate(targets)
    ]


def task(*given: Case, classes: tuple[str, ...] = ("no", "yes")) -> TaskData:
    return TaskData("mine", "classification", classes, list(given))


# --- forms ---


def test_medmnist(tmp_path: Path) -> None:
    arrays = {}
    for split, count in (("train", 4), ("val", 2), ("test", 3)):
        arrays[f"{split}_images"] = np.zeros((count, 28, 28), np.uint8)
        arrays[f"{split}_labels"] = np.arange(count)[:, None] % 2
    np.savez(tmp_path / "some.npz", **arrays)
    found = check_task(read_task(tmp_path / "some.npz"))
    assert (found.kind, found.classes) == ("classification", ("0", "1"))
    assert [len(found.of(split)) for split in ("train", "val", "test")] == [4, 2, 3]  # type: ignore[arg-type]
    assert found.of("test")[2].row == ("test_images", 2)
    for split in ("train", "val", "test"):
        arrays[f"{split}_labels"] = np.tile(arrays[f"{split}_labels"], 3)
    np.savez(tmp_path / "multi.npz", **arrays)
    found = read_task(tmp_path / "multi.npz")
    assert (found.kind, len(found.classes)) == ("multi_label", 3)
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(ValueError, match=r"other\.npz: not a MedMNIST file"):
        read_task(tmp_path / "other.npz")


def test_csv_of_classes_labels_and_values(tmp_path: Path) -> None:
    rows = [
        {"image": "a.png", "second": "a2.png", "label": "10", "x": "0", "split": "training"},
        {"image": "b.png", "second": "b2.png", "label": "9", "x": "1", "split": "valid"},
    ]
    path = table(tmp_path / "list.csv", rows)
    found = read_task(path)
    assert found.classes == ("9", "10")  # as numbers
    assert [case.target for case in found.cases] == [(1.0,), (0.0,)]
    assert [case.split for case in found.cases] == ["train", "val"]
    two = read_task(path, columns=Columns(image=("image", "second"), label=("label", "x")))
    assert two.kind == "multi_label"
    assert two.cases[0].images == (tmp_path / "a.png", tmp_path / "a2.png")
    assert read_task(path, kind="regression").cases[1].target == (9.0,)
    with pytest.raises(ValueError, match=r"line 2: class '10' is not among 9"):
        read_task(path, classes=["9"])
    with pytest.raises(ValueError, match="no column 'grade'; there are image, second"):
        read_task(path, columns=Columns(label=("grade",)))


def test_csv_of_label_maps(tmp_path: Path) -> None:
    path = table(tmp_path / "list.csv", [{"image": "a.nii.gz", "label": "a_seg.nii.gz"}])
    found = read_task(path, classes=["background", "tumour"])
    assert (found.kind, found.cases[0].target) == ("segmentation", tmp_path / "a_seg.nii.gz")
    with pytest.raises(ValueError, match=r"data\.classes"):
        read_task(path)


@pytest.mark.parametrize("splits", [("",), ("train", "val")])
def test_class_folders(tmp_path: Path, splits: tuple[str, ...]) -> None:
    for split in splits:
        for name in ("cat", "dog"):
            picture(tmp_path / split / name / "one.png")
    found = read_task(tmp_path)
    assert found.classes == ("cat", "dog")
    assert len({case.key for case in found.cases}) == len(found.cases) == 2 * len(splits)
    assert {case.split for case in found.cases} == {split or "train" for split in splits}


def test_image_and_label_folders(tmp_path: Path) -> None:
    for key in ("a", "b", "c"):
        picture(tmp_path / "images" / f"{key}.png")
        picture(tmp_path / "labels" / f"{key}.png")
    (tmp_path / "split.json").write_text(json.dumps({"train": ["a"], "val": ["b"], "test": ["c"]}))
    found = check_task(read_task(tmp_path, classes=["background", "x"]))
    assert [(case.key, case.split) for case in found.cases] == [
        ("a", "train"),
        ("b", "val"),
        ("c", "test"),
    ]
    (tmp_path / "labels" / "b.png").unlink()
    picture(tmp_path / "labels" / "d.png")
    with pytest.raises(ValueError, match="image or label missing of b, d"):
        read_task(tmp_path, classes=["background", "x"])


def nnunet(folder: Path) -> Path:
    for folder_name, keys in (("Tr", ("case_1", "case_2")), ("Ts", ("case_3",))):
        for key in keys:
            picture(folder / f"labels{folder_name}" / f"{key}.png")
            for channel in range(2):
                picture(folder / f"images{folder_name}" / f"{key}_{channel:04d}.png")
    content = {
        "channel_names": {"0": "T1", "1": "T2"},
        "labels": {"background": 0, "front": 1, "back": 2},
        "file_ending": ".png",
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    folds = [{"train": ["case_1"], "val": ["case_2"]}, {"train": ["case_2"], "val": ["case_1"]}]
    (folder / "splits_final.json").write_text(json.dumps(folds))
    return folder


def test_nnunet_folder(tmp_path: Path) -> None:
    found = check_task(read_task(nnunet(tmp_path), fold=1))
    assert found.classes == ("background", "front", "back")
    assert {case.key: case.split for case in found.cases} == {
        "case_1": "val",
        "case_2": "train",
        "case_3": "test",
    }
    assert [file.name for file in found.cases[0].images] == ["case_1_0000.png", "case_1_0001.png"]
    with pytest.raises(ValueError, match="2 folds, there is no fold 2"):
        read_task(tmp_path, fold=2)


def test_all_missing_files_are_named(tmp_path: Path) -> None:
    nnunet(tmp_path)
    (tmp_path / "imagesTr" / "case_1_0001.png").unlink()
    (tmp_path / "imagesTs" / "case_3_0000.png").unlink()
    with pytest.raises(ValueError, match=r"2 files are missing: .*case_1_0001.*case_3_0000"):
        check_task(read_task(tmp_path))


def test_datalists(tmp_path: Path) -> None:
    picture(tmp_path / "imagesTr" / "a.png")
    listed = {"image": "./imagesTr/a.png", "label": "./labelsTr/a.png"}
    content = {
        "name": "Organs",
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "liver"},
        "training": [listed, {"image": "./imagesTr/b.png", "label": "./labelsTr/b.png", "fold": 0}],
        "test": ["./imagesTs/c.png"],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    found = read_task(tmp_path)
    assert (found.name, found.kind) == ("Organs", "segmentation")
    assert found.classes == ("background", "liver")
    assert [(case.key, case.split) for case in found.cases] == [("a", "train"), ("b", "val")]
    classes = {
        "training": [{"image": "a.png", "label": 2}],
        "validation": [{"image": "b.png", "label": 0}],
    }
    (tmp_path / "list.json").write_text(json.dumps(classes))
    found = read_task(tmp_path / "list.json")
    assert (found.kind, found.classes) == ("classification", ("0", "1", "2"))
    content["labels"] = {"background": 0, "whole": [1, 2]}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="labels must be single voxel values"):
        read_task(tmp_path)


# --- checks ---


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (task(*cases(0, 1)), "the split 'val' is empty"),
        (task(*cases(0, split="val")), "the split 'train' is empty"),
        (task(*cases(1, 1), *cases(0, split="val")), "all training cases are 'yes'"),
        (task(*cases(0, 2), *cases(0, split="val")), "train1: class 2 is not among the 2 declared"),
        (task(*cases(0, 1), *cases(0, 1)), "listed more than once: train0, train1"),
        (
            task(*cases(0, 1), *cases(float("nan"), split="val")),
            "val0: the target .* is not finite",
        ),
    ],
)
def test_what_cannot_be_learnt_is_refused(given: TaskData, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_task(given)


def test_patients_in_two_splits_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    here = (Path(__file__),)
    two = [
        Case(f"{split}/patient{i:03d}_frame", here, (float(i % 2),), split, f"patient{i:03d}")
        for split, rows in (("train", (1, 2, 3, 4)), ("val", (4, 5)))
        for i in rows
    ]
    with caplog.at_level(logging.WARNING, logger="spadnet"):
        check_task(task(*two))
    assert "1 patient is in more than one split" in caplog.text
    assert "patient004" in caplog.text


@pytest.mark.parametrize(
    ("key", "patient"),
    [
        ("train/sub-01_T1w", "sub-01"),
        ("Subject_12-left", "Subject_12"),
        ("00012345_003", "00012345"),
        ("knee", None),
    ],
)
def test_patient_in_a_name(key: str, patient: str | None) -> None:
    assert patient_of(key) == patient


def test_patient_by_a_pattern_of_the_user() -> None:
    assert patient_of("exam7_left", r"exam(\d)") == "7"


# --- splits ---


def test_whole_patients_are_held_out_of_each_class() -> None:
    here = (Path(__file__),)
    all_cases = [
        Case(f"p{i}-{j}", here, (float(i % 2),), "train", f"p{i}")
        for i in range(20)
        for j in (0, 1)
    ]
    split = hold_out(all_cases, share=0.2, seed=3)
    held = {case.patient for case in split if case.split == "val"}
    assert len(held) == 4
    assert sum(int(str(p)[1:]) % 2 for p in held) == 2
    assert all((case.split == "val") == (case.patient in held) for case in split)
    assert split == hold_out(all_cases, share=0.2, seed=3)
    assert hold_out(split, share=0.5) == split  # validation is there


def test_a_rehearsal_leaves_the_test_split_out() -> None:
    train = cases(*[float(i % 2) for i in range(40)])
    others = [*cases(0, 1, split="val"), *cases(0, 1, 1, split="test")]
    before = task(*train, *others)
    after = rehearsed(before, share=0.25, seed=1)
    assert {c.key for c in after.of("test")} == {c.key for c in before.of("val")}
    held = {c.key for c in after.of("val")}
    assert len(held) == 10
    assert held | {c.key for c in after.of("train")} == {c.key for c in train}


def test_smaller_shares_are_part_of_larger_ones() -> None:
    all_cases = [*cases(*[float(i % 2) for i in range(40)]), *cases(0, 1, split="val")]
    small, large = (subsample(all_cases, share=share, seed=1) for share in (0.1, 0.5))
    assert {case.key for case in small} < {case.key for case in large}
    assert class_counts(task(*small)) == {"no": 2, "yes": 2}
    assert sum(case.split == "val" for case in small) == 2
