"""Both stages from the command line: what they write, how they stop, and what they refuse."""

import errno
import json
import os
import shlex
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from spadnet.cli import main
from spadnet.data.batch import Batch
from spadnet.data.datasets import StepDataset
from spadnet.inference.encoder import load_encoder
from spadnet.train.checkpoint import find_last, list_checkpoints, read_checkpoint
from spadnet.weights.hub import load_tokenizer

Capture = pytest.CaptureFixture[str]
SMALL = (
    "data=folder",
    "data.tokens=[1,2,2]",
    "data.token_budget=8",
    "data.synthetic_share=0",
    "trainer.accelerator=cpu",
    "trainer.precision=32-true",
    "logger.tensorboard=false",
)


@pytest.fixture
def stage_1(pictures: Path, tmp_path: Path) -> Callable[..., int]:
    """Run stage 1 on the pictures, in ``tmp_path / "one"``."""

    def run(*argv: str) -> int:
        return main(
            [
                "pretrain-tokenizer",
                *SMALL,
                f"data.path={pictures}",
                f"out={tmp_path / 'one'}",
                "trainer.max_steps=3",
                "model.codebook_size=8",
                "code_start.share=0.4",
                *argv,
            ]
        )

    return run


def test_both_stages_write_what_can_be_loaded(
    stage_1: Callable[..., int], pictures: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert stage_1() == 0
    first, second = tmp_path / "one", tmp_path / "two"
    assert load_tokenizer(first / "tokenizer").quantizer.codebook_size == 8
    files = {path.name for path in first.iterdir()}
    assert files >= {"config.yaml", "command.txt", "versions.json", "summary.json", "metrics.csv"}
    assert json.loads((first / "versions.json").read_text())["torch"] == torch.__version__
    assert "my pictures" in (first / "tokenizer" / "README.md").read_text()
    assert shlex.split((first / "command.txt").read_text())[:2] == ["spadnet", "pretrain-tokenizer"]

    arguments = [
        "pretrain-mim",
        *SMALL,
        f"data.path={pictures}",
        f"tokenizer={first}",
        f"out={second}",
        "trainer.max_steps=2",
    ]
    assert main(arguments) == 0
    embedding = load_encoder(second / "encoder")(pictures / "a.png")
    assert embedding.cls.shape == (192,)
    assert (second / "mim" / "config.json").is_file()
    summary = json.loads((second / "summary.json").read_text())
    assert (summary["status"], summary["steps"]) == ("finished", 2)
    # An encoder is no tokenizer.
    capsys.readouterr()
    assert main([*arguments[:-3], f"tokenizer={second / 'encoder'}", f"out={tmp_path / 'x'}"]) == 1
    assert "holds a SpadViT, not a Tokenizer" in capsys.readouterr().err


def test_interrupted_run_says_how_to_go_on_and_goes_on_exactly(
    stage_1: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    draw = StepDataset.__getitem__
    assert stage_1(f"out={tmp_path / 'whole'}") == 0

    def interrupt(dataset: StepDataset, step: int) -> list[Batch]:
        if step == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return draw(dataset, step)

    monkeypatch.setattr(StepDataset, "__getitem__", interrupt)
    capsys.readouterr()
    assert stage_1() == 130
    monkeypatch.setattr(StepDataset, "__getitem__", draw)
    last_line = capsys.readouterr().err.splitlines()[-1]
    assert last_line.startswith("continue with: spadnet pretrain-tokenizer")
    assert not (tmp_path / "one" / "tokenizer").exists()
    again = shlex.split(last_line.removeprefix("continue with: spadnet"))
    assert stage_1() == 1
    assert "holds a run already" in capsys.readouterr().err
    assert main(again) == 0
    a, b = (
        load_tokenizer(tmp_path / run / name).state_dict()
        for run, name in (("one", "tokenizer"), ("whole", "tokenizer"))
    )
    assert all(torch.equal(a[name], b[name]) for name in b)
    assert len((tmp_path / "one" / "command.txt").read_text().splitlines()) == 2


def test_full_disk_is_one_line_and_spares_what_was_saved(
    stage_1: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    sync, run = os.fsync, tmp_path / "one"

    def fsync(handle: int) -> None:
        name = os.readlink(f"/proc/self/fd/{handle}")
        if name.endswith(".step-00000002.ckpt.part"):
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(handle)

    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc")
    monkeypatch.setattr(os, "fsync", fsync)
    assert stage_1("callbacks.save_every_steps=1") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert error.endswith("step-00000002.ckpt: No space left on device")
    assert [path.name for path in list_checkpoints(run)] == ["step-00000001.ckpt"]
    assert not list(run.rglob("*.part"))
    last = find_last(run)
    assert last is not None
    read_checkpoint(last)


def empty(folder: Path) -> str:
    (folder / "empty.png").write_bytes(b"")
    return "empty.png"


def truncated(folder: Path) -> str:
    whole = (folder / "a.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    return "cut.png"


def no_image(folder: Path) -> str:
    (folder / "text.nii.gz").write_text("this is no image")
    return "text.nii.gz"


@pytest.mark.parametrize("spoil", [empty, truncated, no_image])
def test_bad_file_is_named_and_nothing_is_written(
    stage_1: Callable[..., int],
    pictures: Path,
    tmp_path: Path,
    capsys: Capture,
    spoil: Callable[[Path], str],
) -> None:
    name = spoil(pictures)
    assert stage_1() == 1
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("error: ") and name in line] == lines[-1:]
    assert not (tmp_path / "one").exists()
    assert stage_1("data.on_error=skip", "trainer.max_steps=1") == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["data.path=/does/not/exist"], 1, "/does/not/exist: no such folder"),
        (["data.path=null"], 2, "data.path=FOLDER is missing"),
        (["data.degrees=[0]"], 1, "degrees [0]: no image can give [0]"),
        (["model.quantizer=sft"], 1, "got 'sft'"),
        (["+model.depth=3"], 2, "takes no such argument; '~model.depth' leaves it out"),
        (["model.name=spad_vit_tiny"], 2, "model 'spad_vit_tiny' does not fit this stage"),
        (["resume=/no/such.ckpt"], 1, "no such checkpoint"),
        (["trainer.precision=bf17-mixed"], 1, "did you mean 'bf16-mixed'"),
        (["trainer.max_steps=0"], 1, "must be positive"),
        (
            ["trainer.devices=2"],
            2,
            "torchrun --standalone --nproc-per-node=2 -m spadnet pretrain-tokenizer",
        ),
        (["model.codebook_size=4096"], 2, "the 4096 codes would start from 1 steps of 24 tokens"),
        (["+loss.kindd=l1"], 2, "loss.kindd: no such argument; did you mean 'kind'"),
    ],
)
def test_wrong_setting_is_told_in_one_line(
    stage_1: Callable[..., int],
    tmp_path: Path,
    capsys: Capture,
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    assert stage_1(*arguments) == code
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("error: ")
    assert message in lines[-1]
    assert not (tmp_path / "one").exists()


@pytest.mark.parametrize(
    ("tokenizer", "code", "message"),
    [
        ("", 2, "tokenizer=FOLDER is missing"),
        ("tokenizer={}/nothing", 1, "nothing: no such folder"),
        ("tokenizer={}", 1, "no config.json"),
    ],
)
def test_tokenizer_that_is_none(
    tmp_path: Path, capsys: Capture, tokenizer: str, code: int, message: str
) -> None:
    argument: list[Any] = [tokenizer.format(tmp_path)] if tokenizer else []
    assert main(["pretrain-mim", f"out={tmp_path / 'out'}", *argument]) == code
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
