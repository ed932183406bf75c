"""Label maps of the user in pre-training: what a step shows, what a run leaves, what is refused."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from spadnet.cli import main
from spadnet.cli.configure import configure
from spadnet.cli.data import build_data
from spadnet.cli.training import plain
from spadnet.data.batch import Batch
from spadnet.train.synthetic import MAP_LABELS

Capture = pytest.CaptureFixture[str]
TINY = (
    "experiment=rasd_unet_tiny",
    "data.tokens=[2,2,2]",
    "data.token_budget=16",
    "data.degrees_per_step=2",
    "trainer.accelerator=cpu",
    "trainer.precision=32-true",
    "trainer.max_steps=3",
    "callbacks.save_every_steps=2",
    "logger.tensorboard=false",
    "callbacks.show_progress=false",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Label maps of 1 and of 2 x 1 x 1 mm, which have more labels together than one may have."""
    folder = tmp_path / "my maps"
    folder.mkdir()
    cells = np.add.outer(np.add.outer(np.arange(40) // 5, 9 * (np.arange(48) // 5)), np.zeros(44))
    cells = (cells + 70 * (np.arange(44) // 5)) % 230
    for name, labels, mm in (("a", cells, 1), ("b", 1000 + cells[..., :20], 2)):
        labels = np.where(labels % 4 == 0, 0, labels).astype(np.int16)
        image = nib.Nifti1Image(labels, np.diag([1, 1, mm, 1]))  # type: ignore[no-untyped-call]
        nib.save(image, folder / f"{name}.nii.gz")  # type: ignore[no-untyped-call]
    return folder


def steps(*arguments: str, rank: int = 0, world_size: int = 1) -> list[list[Batch]]:
    """All steps of a training."""
    config = configure("pretrain_mim", [*TINY, *arguments])
    assert config is not None
    data = build_data(plain(config), in_chans=1, images=False, labelled=True)
    dataset: Any = data.module.dataset
    dataset = dataset.for_rank(rank, world_size)
    return [dataset[step] for step in range(3)]


def same(ours: Sequence[Batch], theirs: Sequence[Batch]) -> list[bool]:
    """Whether micro-batches show the same images with the same labels, to the bit."""
    pairs = list(zip(ours, theirs, strict=True))
    for a, b in pairs:
        assert torch.equal(a.image, b.image) == torch.equal(a.other_view, b.other_view)
    return [torch.equal(a.image, b.image) and torch.equal(a.labels, b.labels) for a, b in pairs]


def test_steps_show_label_maps_in_their_share_and_are_the_same_again(folder: Path) -> None:
    maps = f"data.label_maps={folder}"
    only = steps(maps, "data.label_map_share=1.0")
    again = steps(f"data.label_maps={folder}/*.nii.gz", "data.label_map_share=1.0")
    assert all(all(same(a, b)) for a, b in zip(only, again, strict=True))
    none, drawn = steps(maps, "data.label_map_share=0.0"), steps()
    assert all(all(same(a, b)) for a, b in zip(none, drawn, strict=True))
    assert not any(any(same(a, b)) for a, b in zip(only, drawn, strict=True))
    half = [steps(maps, rank=rank, world_size=2) for rank in range(2)]
    whole = steps(maps)
    for step, parts in enumerate(zip(*half, strict=True)):
        for micro, *shares in zip(whole[step], *parts, strict=True):
            assert torch.equal(torch.cat([share.image for share in shares]), micro.image)
            assert torch.equal(torch.cat([share.labels for share in shares]), micro.labels)
    most = max(int(micro.labels.max()) for step in only for micro in step)
    assert 16 < most < MAP_LABELS


def test_unet_learns_from_label_maps_and_goes_on_as_if_nothing_had_happened(
    folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    run = ["pretrain-mim", *TINY, f"data.label_maps={folder}", f"out={out}", "resume=auto"]
    assert main(run) == 0
    training = json.loads((out / "unet" / "config.json").read_text())["training"]
    assert training["label_map_share"] == 0.5
    assert training["data"] == ["spadnet synthesis", "label maps my maps"]
    told = json.loads((out / "data.json").read_text())["label_maps"]
    assert [line.split()[0] for line in told] == ["a.nii.gz", "b.nii.gz"]
    with open(out / "metrics.csv", newline="") as stream:
        losses = [float(row["train/loss"]) for row in csv.DictReader(stream) if row["train/loss"]]
    assert losses
    assert all(0 < loss < 20 for loss in losses)
    weights = out / "unet" / "model.safetensors"
    first = weights.read_bytes()
    weights.unlink()
    (out / "checkpoints" / "step-00000003.ckpt").unlink()
    assert main(run) == 0
    assert weights.read_bytes() == first


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """What cannot be used."""
    folder = tmp_path / "files"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, array in (
        ("scan", rng.random((6, 6, 6), np.float32)),
        ("empty", np.zeros((6, 6, 6), np.uint8)),
        ("many", np.arange(1000, dtype=np.int16).reshape(10, 10, 10)),
    ):
        image = nib.Nifti1Image(array, np.eye(4))  # type: ignore[no-untyped-call]
        nib.save(image, folder / f"{name}.nii")  # type: ignore[no-untyped-call]
    Image.fromarray(rng.integers(3, size=(32, 32), dtype=np.uint8)).save(folder / "flat.png")
    return folder


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["data.label_maps=FILES/nowhere"], 1, "/nowhere: no such file or folder"),
        (["data.label_maps=FILES/*.mgz"], 1, "/*.mgz: no file matches"),
        (["data.label_maps=FILES/scan.nii"], 1, "scan.nii: not a label map: 0."),
        (["data.label_maps=FILES/many.nii"], 1, "many.nii: 1000 labels, at most 256"),
        (["data.label_maps=FILES/empty.nii"], 1, "empty.nii: a label map without labels"),
        (["data.label_maps=FILES/flat.png"], 2, "flat.png: label maps that are single slices"),
        (["data.label_map_share=1.5"], 2, "data.label_map_share must lie in [0, 1], got 1.5"),
        (["data.label_map_share=null"], 2, "data.label_map_share must lie in [0, 1], got None"),
        (
            ["data.label_maps=FILES", "objective=pixels", "model=spad_vit_tiny"],
            2,
            "data.label_maps needs objective=disentangle of spadnet pretrain-mim",
        ),
    ],
)
def test_mistake_is_told_in_one_line(
    files: Path,
    tmp_path: Path,
    capsys: Capture,
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    line = [argument.replace("FILES", str(files)) for argument in arguments]
    assert main(["pretrain-mim", *TINY, *line, f"out={tmp_path / 'run'}"]) == code
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("error: ")
    assert message in lines[-1]
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_single_slices_are_enough_for_2d_images(files: Path) -> None:
    shown = steps(
        f"data.label_maps={files / 'flat.png'}",
        "data.label_map_share=1.0",
        "data.degrees=[5]",
        "data.degrees_per_step=1",
    )
    assert all(set(micro.labels.unique().tolist()) <= {0, 1, 2} for (micro,) in shown)


def test_a_tokenizer_is_not_trained_from_label_maps(files: Path, capsys: Capture) -> None:
    assert main(["pretrain-tokenizer", f"data.label_maps={files}", "out=nowhere"]) == 2
    assert "data.label_maps needs objective=disentangle" in capsys.readouterr().err
