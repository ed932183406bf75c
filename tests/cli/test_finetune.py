"""``spadnet finetune``: what it writes, how it goes on, and what it refuses in one line."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from spadnet.inference.trained_range import TrainedRange
from spadnet.models.registry import create_model
from spadnet.weights.hub import load_checkpoint, save_pretrained

Capture = pytest.CaptureFixture[str]
CONV = ("model=spad_conv_tiny", "model.widths=[4,8]", "data.size=[1,16,16]")
VIT = ("model=spad_vit_tiny", "model.depth=2", "data.size=[1,32,32]")


def test_best_and_last_and_scores_are_written(finetune: Callable[..., int], tmp_path: Path) -> None:
    assert finetune(*CONV) == 0
    run = tmp_path / "run"
    best = load_checkpoint(run / "best")
    assert best.config["training"]["task"]["classes"] == ["bright", "dark"]
    assert best.config["training"]["task"]["preparation"]["size"] == [1, 16, 16]
    assert best.contract.intensity["crop_to_foreground"] is False
    assert TrainedRange.of(best.config["training"]) == TrainedRange(degrees=(5,))
    load_checkpoint(run / "last")
    records = json.loads((run / "results.json").read_text())
    assert {record["metric"] for record in records} == {"auc", "accuracy", "balanced_accuracy"}
    with open(run / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6
    auc = np.mean(
        [
            float(a["dark"]) > float(b["dark"])
            for a in rows
            for b in rows
            if a["target"] > b["target"]
        ]
    )
    assert auc == pytest.approx(next(r["value"] for r in records if r["metric"] == "auc"))
    assert finetune(*CONV) == 1  # a run is there
    assert finetune(*CONV, "trainer.max_steps=6", "resume=auto") == 0


@pytest.mark.parametrize("mode", ["probe", "attention"])
def test_frozen_encoder_from_a_checkpoint(
    finetune: Callable[..., int], tmp_path: Path, mode: str
) -> None:
    assert finetune(*VIT, "test=false", f"out={tmp_path / 'first'}") == 0
    assert not (tmp_path / "first" / "results.json").exists()
    first = tmp_path / "first" / "best"
    assert finetune(*VIT, f"recipe.mode={mode}", f"init={first}") == 0
    before = load_checkpoint(first).model.state_dict()
    after = load_checkpoint(tmp_path / "run" / "best").model.state_dict()
    prefix = "vit." if mode == "attention" else ""
    for name, value in before.items():
        if not name.startswith("head."):
            assert torch.equal(after[prefix + name], value), name


@pytest.mark.parametrize("mode", ["probe", "lora"])
def test_head_of_any_mode_starts_as_a_probe(
    finetune: Callable[..., int], tmp_path: Path, capsys: Capture, mode: str
) -> None:
    assert finetune(*VIT, "recipe.first_head=probe", f"recipe.mode={mode}", "test=false") == 0
    told = capsys.readouterr().err
    assert "a probe of random features" in told
    assert "step 0: validation auc 1.0000" in told


def test_head_starts_as_a_probe_which_may_stay_best(
    finetune: Callable[..., int], tmp_path: Path, capsys: Capture
) -> None:
    """Steps that would ruin it leave the first state, which has learned dark from bright."""
    arguments = ("recipe.first_head=probe", "optim.lr=0", "optim.final_lr=0")
    assert finetune(*VIT, *arguments) == 0
    assert "head: linear probe of 12 cases" in capsys.readouterr().err
    best = load_checkpoint(tmp_path / "run" / "best").config["training"]
    assert best["steps"] == 0
    assert best["validation"]["auc"] == 1
    assert finetune(*VIT, *arguments, "resume=auto", "trainer.max_steps=6") == 0
    assert "head: linear probe" not in capsys.readouterr().err  # the checkpoint has a head
    records = json.loads((tmp_path / "run" / "results.json").read_text())
    assert {r["value"] for r in records if r["metric"] == "auc"} == {1.0}


def test_low_rank_corrections_are_merged(finetune: Callable[..., int], tmp_path: Path) -> None:
    assert finetune(*VIT, "recipe.mode=lora", "recipe.lora_rank=2") == 0
    assert (
        "blocks.0.attn.qkv.weight" in load_checkpoint(tmp_path / "run" / "best").model.state_dict()
    )


def test_splits_of_one_class_have_no_auc(
    finetune: Callable[..., int], folders: Path, tmp_path: Path
) -> None:
    for split in ("val", "test"):
        for file in (folders / split / "dark").iterdir():
            file.rename(folders / "train" / "dark" / f"{split}{file.name}")
        (folders / split / "dark").rmdir()
    assert finetune(*CONV) == 0
    records = json.loads((tmp_path / "run" / "results.json").read_text())
    assert {record["metric"] for record in records} == {"accuracy", "balanced_accuracy"}
    assert "auc" not in load_checkpoint(tmp_path / "run" / "best").config["training"]["validation"]


def test_mean_token_and_mixed_images(finetune: Callable[..., int], tmp_path: Path) -> None:
    arguments = ("model.global_pool=avg", "recipe.mixup=0.4", "data.micro_batch=2")
    assert finetune(*VIT, *arguments, "trainer.precision=bf16-mixed") == 0
    loaded = load_checkpoint(tmp_path / "run" / "best")
    assert loaded.config["model"]["arguments"]["global_pool"] == "avg"
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["precision"] == "bf16-mixed"
    assert all(p.dtype == torch.float32 for p in loaded.model.parameters())


@pytest.mark.parametrize(("asked", "pool"), [((), "avgstd"), (("model.global_pool=avg",), "avg")])
def test_first_weights_say_how_tokens_are_pooled(
    finetune: Callable[..., int], tmp_path: Path, asked: tuple[str, ...], pool: str
) -> None:
    vit = create_model("spad_vit_tiny", in_chans=1, depth=1, global_pool="avgstd")
    line = f"init={save_pretrained(vit, tmp_path / 'first')}"
    assert finetune(*VIT, line, "model.depth=1", *asked, "trainer.max_steps=1") == 0
    loaded = load_checkpoint(tmp_path / "run" / "best")
    assert loaded.config["model"]["arguments"]["global_pool"] == pool


def test_length_in_passes_over_the_cases(finetune: Callable[..., int], tmp_path: Path) -> None:
    length = ("recipe.epochs=2", "validate.every_steps=null", "data.batch_size=5")
    assert finetune(*CONV, *length, "test=false") == 0
    last = load_checkpoint(tmp_path / "run" / "last").config["training"]
    assert last["steps"] == 6  # twice 12 cases, 5 at a time
    assert load_checkpoint(tmp_path / "run" / "best").config["training"]["steps"] in (3, 6)
    assert "max_steps: 6" in (tmp_path / "run" / "config.yaml").read_text()


def test_layers_decay_and_classes_weigh_alike(finetune: Callable[..., int]) -> None:
    arguments = ("recipe.layer_decay=0.8", "recipe.class_weights=balanced")
    assert finetune(*VIT, *arguments, "recipe.schedule=steps", "test=false") == 0


@pytest.mark.parametrize("kind", ["ordinal", "regression", "multi_label"])
def test_other_kinds_of_target(
    finetune: Callable[..., int], folders: Path, tmp_path: Path, kind: str
) -> None:
    files = sorted(folders.rglob("*.png"))
    table = tmp_path / "list.csv"
    with open(table, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "label", "other", "split"])
        for i, path in enumerate(files):
            writer.writerow(
                [path, i % (2 if kind == "multi_label" else 4), (i // 2) % 2, path.parts[-3]]
            )
    columns = "[label,other]" if kind == "multi_label" else "[label]"
    arguments = (f"data.path={table}", f"data.task={kind}", f"data.label_columns={columns}")
    assert finetune(*CONV, *arguments) == 0
    records = json.loads((tmp_path / "run" / "results.json").read_text())
    assert {"ordinal": "kappa", "regression": "r2", "multi_label": "auc"}[kind] in {
        record["metric"] for record in records
    }


MAPS = ("data.classes=[background,blob]", "data.crop=[16,32,32]", "data.batch_size=2")


@pytest.mark.parametrize("model", ["spad_unet_tiny", "spad_vit_tiny", "spad_vt_tiny"])
def test_thick_and_thin_volumes_are_segmented_on_their_own_grids(
    finetune: Callable[..., int], maps: Path, tmp_path: Path, model: str
) -> None:
    own = ("model.depth=4",) if model == "spad_vit_tiny" else ()
    arguments = (f"model={model}", *own, f"data.path={maps}", *MAPS, "trainer.max_steps=2")
    assert finetune(*arguments, "validate.flips=[2]") == 0
    run = tmp_path / "run"
    with open(run / "cases.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["case"], row["label"]) for row in rows] == [("c3", "blob"), ("c4", "blob")]
    records = {r["metric"]: r["value"] for r in json.loads((run / "results.json").read_text())}
    assert records["dice"] == pytest.approx(np.mean([float(row["dice"]) for row in rows]), rel=1e-5)
    for name in ("c3", "c4"):
        mask = nib.load(run / "masks" / f"{name}.nii.gz")  # type: ignore[attr-defined]
        image = nib.load(maps / "images" / f"{name}.nii.gz")  # type: ignore[attr-defined]
        assert mask.shape == image.shape
        np.testing.assert_allclose(mask.affine, image.affine)
    loaded = load_checkpoint(run / "best")
    facts = loaded.config["training"]["task"]
    assert facts["crop"] == [16, 32, 32]
    assert facts["follows_body"]
    assert not facts["thin_logits"]  # labels are as thick as slices
    assert facts["centred"] == (model == "spad_vit_tiny")
    assert TrainedRange.of(loaded.config["training"]) == TrainedRange((1, 1), (0, 2))
    with torch.no_grad():
        assert loaded.model(torch.rand(1, 1, 32, 32, 32), 0).shape == (1, 2, 32, 32, 32)


@pytest.mark.parametrize("kind", ["unet", "tokenizer"])
def test_segmentors_start_from_what_was_trained(
    finetune: Callable[..., int], maps: Path, tmp_path: Path, kind: str
) -> None:
    torch.manual_seed(1)
    saved: Any = create_model({"unet": "spad_unet_tiny", "tokenizer": "spad_vt_tiny"}[kind])
    save_pretrained(saved, tmp_path / "first" / kind)
    model = {"unet": "spad_unet_tiny", "tokenizer": "spad_vt_tiny"}[kind]
    arguments = (f"data.path={maps}", *MAPS, f"model={model}", f"init={tmp_path / 'first'}")
    still = ("trainer.max_steps=1", "optim.lr=1e-12", "optim.warmup_steps=0", "test=false")
    assert finetune(*arguments, *still, "recipe.layer_decay=0.5") == 0
    found = load_checkpoint(tmp_path / "run" / "best").model.state_dict()
    prefix = {"unet": "", "tokenizer": "pyramid."}[kind]
    taken = [key for key in saved.state_dict() if key.startswith("encoder.")]
    assert taken
    for key in taken:
        torch.testing.assert_close(found[prefix + key], saved.state_dict()[key], msg=key)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((*MAPS, "recipe.mixup=0.2"), 2, "recipe.mixup is for classes and labels"),
        ((*MAPS, "model=spad_conv_tiny"), 2, "'spad_conv_tiny' does not fit a segmentation task"),
        ((*MAPS, "init=/no/such"), 1, "/no/such"),
        ((*MAPS, "data.crop=[-1,2,3]"), 2, "data.crop must be 3 whole numbers of at least 1"),
        ((*MAPS, "data.window=[3,1]"), 2, "data.window must rise, got [3, 1]"),
        ((*MAPS, "data.degree=9"), 2, "data.degree must be 0 to 5, got 9"),
        ((*MAPS, "data.foreground=2"), 2, "data.foreground must lie in [0, 1], got 2"),
        ((), 1, "must name the label map's values"),
        (MAPS[:1], 2, "data.crop=[z,y,x] is missing"),
        ((*MAPS, "recipe.mode=probe"), 2, "is for classes and values"),
        ((*MAPS, "recipe.first_head=probe"), 2, "first_head=probe does not fit label maps"),
        ((*MAPS, "data.size=[1,2,3]"), 2, "data.spacing resamples label maps"),
        ((*MAPS, "data.classes=[background]"), 1, "voxel values [1] are not among the 1"),
    ],
)
def test_wrong_segmentation_is_told_in_one_line(
    finetune: Callable[..., int],
    maps: Path,
    tmp_path: Path,
    capsys: Capture,
    arguments: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    assert finetune("model=spad_unet_tiny", f"data.path={maps}", *arguments) == code
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["data.path=null"], 2, "data.path=FILE|FOLDER is missing"),
        (["data.path=/no/such"], 1, "/no/such: no such file or folder"),
        (["data.classes=[bright]"], 1, "dark not among bright"),
        (["data.task=clasification"], 1, "did you mean 'classification'"),
        (["data.size=[16,16]"], 2, "data.size must be 3 whole numbers"),
        (["data=samples"], 2, "data"),
        (["model=spad_vt_tiny"], 2, "does not fit"),
        (["recipe.mode=probing"], 2, "unknown recipe.mode 'probing'; did you mean 'probe'"),
        (["recipe.mode=probe"], 2, "are for a spad_vit"),
        (["recipe.first_head=probe"], 2, "first_head=probe does not fit a spad_conv"),
        (["recipe.first_head=prob"], 2, "unknown recipe.first_head 'prob'; did you mean 'probe'"),
        (["trainer.devices=2"], 2, "several devices is not supported yet"),
        (["recipe.class_weights=[1]"], 2, "must be balanced or 2 numbers"),
        (["experiment=mim_tiny"], 2, "this experiment is for spadnet pretrain-mim"),
        (["recipe.mixup=0.2", "data.micro_batch=1"], 2, "data.micro_batch=2 or more"),
        (["+model.features=[4,8]"], 2, "takes no such argument; '~model.features' leaves it out"),
        (["recipe.label_smoothing=3"], 1, "label_smoothing must lie in [0, 1), got 3"),
        (["recipe.mixup=-1"], 1, "mixup must not be negative, got -1"),
        (["recipe.epochs=0"], 2, "recipe.epochs must be a positive whole number, got 0"),
        (["data.warp.angel=3"], 2, "unknown key 'data.warp.angel'"),
    ],
)
def test_wrong_setting_is_told_in_one_line(
    finetune: Callable[..., int],
    tmp_path: Path,
    capsys: Capture,
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    assert finetune(*CONV[2:], "model=spad_conv_tiny", *arguments) == code
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    assert message in lines[-1]
    assert not (tmp_path / "run").exists()


def test_a_fault_of_the_test_split_is_told_before_the_training(
    finetune: Callable[..., int], maps: Path, tmp_path: Path, capsys: Capture
) -> None:
    for name in ("c2", "c4"):  # of validation, of test
        file = maps / "labels" / f"{name}.nii.gz"
        label = nib.load(file)  # type: ignore[attr-defined]
        wrong = nib.Nifti1Image(np.asarray(label.dataobj) * 3, label.affine)  # type: ignore[no-untyped-call]
        nib.save(wrong, file)  # type: ignore[no-untyped-call, attr-defined]
    arguments = ("model=spad_unet_tiny", f"data.path={maps}", *MAPS)
    assert finetune(*arguments) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    for name in ("c2", "c4"):
        assert f"{name}.nii.gz: voxel values [3] are not among the 2 declared classes" in last
    assert not (tmp_path / "run").exists()


def test_label_maps_of_one_class_are_refused(
    finetune: Callable[..., int],
    maps: Path,
    capsys: Capture,
    caplog: pytest.LogCaptureFixture,
) -> None:
    arguments = (
        "model=spad_unet_tiny",
        f"data.path={maps}",
        *MAPS,
        "data.classes=[none,blob,lump]",
    )
    assert finetune(*arguments, "trainer.max_steps=1", "test=false") == 0
    assert "maps: no training case has lump" in caplog.text
    for file in (maps / "labels").iterdir():
        label = nib.load(file)  # type: ignore[attr-defined]
        empty = nib.Nifti1Image(np.asarray(label.dataobj) * 0, label.affine)  # type: ignore[no-untyped-call]
        nib.save(empty, file)  # type: ignore[no-untyped-call, attr-defined]
    assert finetune(*arguments, "out=elsewhere") == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert "all training label maps are 'none' alone; there is nothing to learn" in last


def test_a_table_that_is_cut_off_is_named_once(
    finetune: Callable[..., int], tmp_path: Path, capsys: Capture
) -> None:
    labels = {f"{split}_labels": np.arange(6)[:, None] % 2 for split in ("train", "val", "test")}
    images = {f"{split}_images": np.zeros((2, 8, 8), np.uint8) for split in ("val", "test")}
    pixels = np.random.default_rng(0).integers(0, 255, (3, 8, 8), np.uint8)
    np.savez(tmp_path / "few.npz", train_images=pixels, **labels, **images)
    assert finetune(*CONV, f"data.path={tmp_path / 'few.npz'}") == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.count("train_images has 3 images, but there are more labels") == 1
    whole = (tmp_path / "few.npz").read_bytes()
    (tmp_path / "few.npz").write_bytes(whole[: len(whole) // 2])
    assert finetune(*CONV, f"data.path={tmp_path / 'few.npz'}") == 1
    assert "few.npz: not a MedMNIST file, or cut off" in capsys.readouterr().err.splitlines()[-1]


def test_all_unreadable_images_are_named(
    finetune: Callable[..., int], folders: Path, tmp_path: Path, capsys: Capture
) -> None:
    for name in ("one.png", "two.png"):
        (folders / "train" / "dark" / name).write_bytes(b"")
    assert finetune(*CONV) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert "one.png" in last
    assert "two.png" in last
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["key", "prediction", "signature", "case", "target"])
def test_a_class_cannot_have_the_name_of_a_column(
    finetune: Callable[..., int], folders: Path, capsys: Capture, name: str
) -> None:
    for split in ("train", "val", "test"):
        (folders / split / "dark").rename(folders / split / name)
    assert finetune(*CONV) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert f"{folders}: {name!r} names a column of predictions.csv" in last
