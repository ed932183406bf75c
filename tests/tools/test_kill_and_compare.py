"""A killed training continues to the same bits, and the tool that says so can say otherwise."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

TOOLS = Path(__file__).resolve().parents[2] / "tools"
TOOL = TOOLS / "kill_and_compare.py"


@pytest.mark.parametrize("stage", ["tokenizer", "finetune"])
def test_a_killed_training_ends_the_same(stage: str) -> None:
    command = [sys.executable, str(TOOL), "--stage", stage, "--kills", "1", "--steps", "10"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 kills, no differing bit" in done.stdout


def test_every_difference_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TOOLS))
    from kill_and_compare import differences

    a = {"step": 3, "weights": [torch.zeros(2), torch.tensor([torch.nan])], "name": "x"}
    same = {"step": 3, "weights": [torch.zeros(2), torch.tensor([torch.nan])], "name": "x"}
    other = {"step": 4, "weights": [torch.tensor([0.0, -0.0]), torch.zeros(1)], "more": 1}
    assert list(differences(a, same, where="file")) == []
    named = " ".join(differences(a, other, where="file"))
    for part in ("step", "weights/0", "weights/1", "more", "name"):
        assert part in named
