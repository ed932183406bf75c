"""``spadnet replay``: the same numbers again, and what it refuses in one line."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from spadnet.cli import main
from spadnet.train.checkpoint import find_last, read_checkpoint
from spadnet.weights.hub import load_tokenizer

Capture = pytest.CaptureFixture[str]
CONV = ("model=spad_conv_tiny", "model.widths=[4,8]", "data.size=[1,16,16]", "test=false")


def test_a_step_of_a_fine_tuning(
    finetune: Callable[..., int], tmp_path: Path, capsys: Capture
) -> None:
    saving = ("callbacks.save_every_steps=2", "callbacks.keep_last=9", "logger.every_steps=1")
    assert finetune(*CONV, *saving) == 0
    capsys.readouterr()
    assert main(["replay", str(tmp_path / "run"), "4"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("step 4, computed from the state after step 2\nmicro-batch 0: degree 5")
    assert "as in the log\nall finite\n" in out


def test_a_step_of_stage_1_from_its_start_and_an_average_that_is_exported(
    pictures: Path, tmp_path: Path, capsys: Capture
) -> None:
    run = tmp_path / "one"
    arguments = [
        "pretrain-tokenizer",
        "data=folder",
        f"data.path={pictures}",
        "data.tokens=[1,2,2]",
        "data.token_budget=8",
        "data.synthetic_share=0",
        "trainer.accelerator=cpu",
        "trainer.precision=32-true",
        "trainer.max_steps=3",
        "trainer.skip_non_finite=1",
        "model.codebook_size=8",
        "code_start.share=0",
        "discriminator.enabled=true",
        "optim.ema=0.9",
        "optim.schedule=poly",
        "logger.tensorboard=false",
        "logger.every_steps=1",
        f"out={run}",
    ]
    assert main(arguments) == 0
    last = find_last(run)
    assert last is not None
    state = read_checkpoint(last)["state_dict"]
    exported = load_tokenizer(run / "tokenizer").state_dict()
    for name, value in exported.items():
        assert torch.equal(value, state[f"averaged.{name}"]), name
    assert any(not torch.equal(v, state[f"tokenizer.{n}"]) for n, v in exported.items())
    assert main(["export-weights", f"in={run}", f"out={tmp_path / 'again'}"]) == 0
    again = load_tokenizer(tmp_path / "again" / "tokenizer").state_dict()
    assert all(torch.equal(again[name], value) for name, value in exported.items())
    capsys.readouterr()
    assert main(["replay", str(run), "2"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("step 2, computed from the start\n")
    assert "loss of the discriminator" in out
    assert "as in the log\nall finite\n" in out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "expected RUN STEP, got nothing"),
        (["{run}", "second"], 2, "expected RUN STEP"),
        (["{run}/nowhere", "2"], 1, "nowhere: no such run"),
        (["{run}", "2"], 1, "config.yaml: missing"),
    ],
)
def test_wrong_requests_are_told_in_one_line(
    tmp_path: Path, capsys: Capture, arguments: list[str], code: int, message: str
) -> None:
    words = [word.format(run=tmp_path) for word in arguments]
    assert main(["replay", *words]) == code
    assert message in capsys.readouterr().err.splitlines()[-1]
