"""Two ranks on the CPU do what one process does, stop together and fail together."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from rank_program import STEPS, AtStep, train

from spadnet.train.checkpoint import find_last, list_checkpoints, read_checkpoint
from spadnet.train.launch import Launch, find_launch, rank_label
from spadnet.train.metrics_log import read_rows

PROGRAM = Path(__file__).parents[1] / "rank_program.py"
PARTS = ["tokenizer", "adversarial", "gumbel", "mixed", "mim-stop", "fsdp"]
PARTS += ["skipping-poison", "failing-raise"]


class Done(NamedTuple):
    """What two ranks left: a run per part, and what they and torchrun said."""

    folder: Path
    code: int
    words: list[str]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """All parts on two ranks, in one go since starting takes longest; torchrun finds the port.

    In the part of stage 2 the second rank gets a signal, in the last one it fails.
    """
    folder = tmp_path_factory.mktemp("ranks")
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*line, str(PROGRAM), str(folder), *PARTS], capture_output=True, text=True, timeout=120
    )
    return Done(folder, done.returncode, done.stderr.splitlines())


def compare(ours: Path, theirs: Path) -> None:
    """Assert that two runs ended with equal weights and rows."""
    files = [find_last(ours), find_last(theirs)]
    a, b = (read_checkpoint(file)["state_dict"] for file in files if file is not None)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-5, atol=1e-5, msg=name)
    rows = [read_rows(run / "metrics.csv") for run in (ours, theirs)]
    assert len(rows[0]) == len(rows[1]) == STEPS
    for row, other in zip(*rows, strict=True):
        assert row.keys() == other.keys()
        for name in row:
            if row[name] or other[name]:
                assert float(row[name]) == pytest.approx(
                    float(other[name]), rel=1e-4, abs=1e-6, nan_ok=True
                )


@pytest.mark.parametrize("name", ["tokenizer", "adversarial", "gumbel", "mixed", "fsdp"])
def test_two_ranks_equal_one(two_ranks: Done, name: str, tmp_path: Path) -> None:
    train(tmp_path, name)
    compare(two_ranks.folder / name, tmp_path / name)


def test_a_step_that_is_not_finite_on_one_rank_is_left_out_on_all(
    two_ranks: Done, tmp_path: Path
) -> None:
    train(tmp_path, "skipping", callbacks=[AtStep(3, "poison")])
    run = two_ranks.folder / "skipping"
    compare(run, tmp_path / "skipping")
    assert read_rows(run / "metrics.csv")[-1]["train/skipped_steps"] == "1.0"
    files = sorted(path.name for path in (run / "non_finite" / "step-00000004").iterdir())
    assert files == ["batch-0.pt", "batch-1.pt", "before.ckpt"]


def test_a_signal_to_one_rank_stops_all_and_one_process_continues(
    two_ranks: Done, tmp_path: Path
) -> None:
    stops = [line for line in two_ranks.words if ": stopped after" in line]
    assert sorted(stops) == ["rank 0: stopped after step 4", "rank 1: stopped after step 4"]
    stopped = two_ranks.folder / "mim"
    assert [path.name for path in list_checkpoints(stopped)] == ["step-00000004.ckpt"]
    train(two_ranks.folder, "mim", resume="auto")
    train(tmp_path, "mim")
    compare(stopped, tmp_path / "mim")


def test_only_the_first_rank_writes(two_ranks: Done) -> None:
    run = two_ranks.folder / "tokenizer"
    names = sorted(path.name for path in run.rglob("*"))
    assert names == ["checkpoints", "metrics.csv", "step-00000006.ckpt", "summary.json"]
    summary = json.loads((run / "summary.json").read_text())
    assert summary["ranks"] == 2
    assert summary["images"] == STEPS * 2 * 4


def test_a_failing_rank_ends_all_and_is_heard(two_ranks: Done) -> None:
    assert two_ranks.code != 0
    assert "rank 1: error: the cooling failed" in two_ranks.words
    assert find_last(two_ranks.folder / "failing") is None


_TOLD_BY_TORCHRUN = (
    "TORCHELASTIC_RUN_ID",
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
)


def srun(monkeypatch: pytest.MonkeyPatch, **told: str) -> None:
    """Set what srun tells a task, and nothing of torchrun's."""
    for name in _TOLD_BY_TORCHRUN:
        monkeypatch.setenv(name, "")  # so that it is restored, whatever is set in between
        monkeypatch.delenv(name)
    for name, value in told.items():
        monkeypatch.setenv(f"SLURM_{name}", value)


def test_tasks_of_srun_are_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"STEP_NUM_TASKS": "8", "PROCID": "5", "LOCALID": "1", "NODEID": "1"}
    srun(
        monkeypatch,
        **told,
        STEP_TASKS_PER_NODE="4(x2)",
        STEP_NODELIST="gpu[07-08]",
        JOB_ID="1234567",
    )
    assert rank_label() == "rank 5: "
    found = find_launch()
    assert found == Launch(5, 8, 4)
    assert found.num_nodes == 2
    assert os.environ["MASTER_ADDR"] == "gpu07"
    assert os.environ["MASTER_PORT"] == "19567"


def test_a_batch_script_is_no_task(monkeypatch: pytest.MonkeyPatch) -> None:
    srun(monkeypatch, NTASKS="8", PROCID="0", LOCALID="0")
    assert find_launch() is None


def test_uneven_tasks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    srun(
        monkeypatch,
        STEP_NUM_TASKS="3",
        PROCID="0",
        LOCALID="0",
        NODEID="0",
        STEP_TASKS_PER_NODE="2,1",
        STEP_NODELIST="a,b",
    )
    with pytest.raises(ValueError, match="use --ntasks-per-node"):
        find_launch()
