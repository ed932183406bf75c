"""The tool that compares ranks with one process sees differences and finds checkpoints."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

import compare_ranks


def test_largest_difference_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    a = {"small": torch.zeros(3), "large": torch.ones(2)}
    b = {"small": torch.full((3,), 1e-6), "large": torch.tensor([1.0, 1.5])}
    assert compare_ranks.report("2 ranks", a, b) == 0.5
    assert capsys.readouterr().out == "2 ranks: largest difference 5.00e-01, in large\n"


def test_one_process_needs_no_launcher(tmp_path: Path) -> None:
    alone = compare_ranks.command_line(["pretrain-mim"], tmp_path, ranks=1)
    several = compare_ranks.command_line(["pretrain-mim"], tmp_path, ranks=4)
    assert alone[1:] == ["-m", "spadnet", "pretrain-mim", f"out={tmp_path}"]
    assert "--nproc-per-node=4" in several
    assert several[-3:] == alone[-3:]


def test_newest_checkpoint_counts(tmp_path: Path) -> None:
    assert compare_ranks.last_step(tmp_path) == 0
    (tmp_path / "checkpoints").mkdir()
    for step in (5, 10):
        (tmp_path / "checkpoints" / f"step-{step:08d}.ckpt").touch()
    assert compare_ranks.last_step(tmp_path) == 10
