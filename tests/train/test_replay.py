"""A step done again gives the same bits, and what was not finite is found where it began."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from spadnet.data.batch import Batch
from spadnet.train.checkpoint import checkpoint_path
from spadnet.train.datamodule import StepDataModule
from spadnet.train.metrics_log import read_rows
from spadnet.train.non_finite import NonFiniteError
from spadnet.train.replay import Replayed, newest_before, replay
from spadnet.train.run import FitResult, fit
from spadnet.train.step_task import StepTask

BuildTask = Callable[[int], StepTask]
Fit = Callable[..., FitResult]


def again(task: StepTask, data: Any, folder: Path, step: int) -> Replayed:
    module = StepDataModule(data, max_steps=6)
    return replay(task, module, folder, step, accelerator="cpu", precision="32-true")


@pytest.mark.parametrize("step", [2, 6])
def test_a_step_gives_the_same_bits_again(
    build_task: BuildTask,
    quick_fit: Fit,
    random_steps: Callable[[], Any],
    tmp_path: Path,
    step: int,
) -> None:
    quick_fit(build_task(6), tmp_path, max_steps=6, save_every_steps=3, precision="32-true")
    files = sorted(tmp_path.rglob("*"))
    found = again(build_task(6), random_steps(), tmp_path, step)
    assert (found.start, found.is_same_batch, found.findings) == (3 * (step > 3), None, [])
    row = read_rows(tmp_path / "metrics.csv")[step - 1]
    for name in ("train/loss", "train/gradient_norm"):
        assert found.metrics[name] == float(row[name])
    assert [keys[0] for _, keys in found.batch] == [f"{step - 1}-5-0", f"{step - 1}-3-0"]
    assert len(found.losses) in (2, 4)  # with a discriminator, whose turn comes after
    assert sorted(tmp_path.rglob("*")) == files
    assert not torch.is_anomaly_enabled()


class BreaksAt(nn.Module):
    """Lets a gradient or an output cease to be finite at some call."""

    def __init__(self, inner: nn.Module, call: int, *, forward: bool) -> None:
        super().__init__()
        self.inner = inner
        self.call = call
        self.does_forward = forward
        self.count = 0

    def forward(self, *inputs: Any) -> Any:
        self.count += 1
        output = self.inner(*inputs)
        if self.count == self.call:
            # The root of nought has a value, and no slope.
            return output / 0 if self.does_forward else output + (0 * output).sqrt()
        return output


@pytest.mark.parametrize("build_task", ["mim"], indirect=True)
@pytest.mark.parametrize("forward", [True, False])
def test_where_it_began_is_found(
    build_task: BuildTask,
    quick_fit: Fit,
    random_steps: Callable[[], Any],
    tmp_path: Path,
    forward: bool,
) -> None:
    def broken(start: int) -> StepTask:
        task: Any = build_task(6)
        # Two micro-batches a step: the second of the fourth step is the eighth.
        task.model.head[1] = BreaksAt(nn.GELU(), 8 - 2 * start, forward=forward)
        return task

    with pytest.raises(NonFiniteError, match="step 4"):
        quick_fit(broken(0), tmp_path, max_steps=6, save_every_steps=2, precision="32-true")
    found = again(broken(3), random_steps(), tmp_path, 4)
    assert (found.start, found.is_same_batch) == (3, True)
    assert math.isfinite(found.losses[0])
    if forward:
        assert math.isnan(found.losses[1])
        assert found.findings[0] == "output of model.head.1 (BreaksAt), micro-batch 1"
    else:
        assert math.isfinite(found.losses[1])
        # Infinite times nought; autograd names it, and the line of ours that it came from.
        assert "MulBackward0" in found.findings[0]
        assert "computed in spadnet/models/mim.py" in found.findings[0]
        assert "micro-batch 1" in found.findings[0]


def test_what_was_kept_counts_where_the_data_has_changed(
    build_task: BuildTask, random_steps: Callable[[], Any], tmp_path: Path
) -> None:
    class Changed(torch.utils.data.Dataset[list[Batch]]):
        def __getitem__(self, step: int) -> list[Batch]:
            return [b._replace(image=b.image * math.nan) for b in random_steps()[step]]

    module = StepDataModule(Changed(), max_steps=6)
    settings = {"accelerator": "cpu", "precision": "32-true", "tensorboard": False}
    with pytest.raises(NonFiniteError):
        fit(build_task(6), module, tmp_path, **settings)  # type: ignore[arg-type]
    found = again(build_task(6), random_steps(), tmp_path, 1)
    assert found.is_same_batch is False
    assert found.findings[:2] == ["image of micro-batch 0", "image of micro-batch 1"]


def test_the_state_nearest_before_is_taken(tmp_path: Path) -> None:
    assert newest_before(tmp_path, 3) == (None, 0)
    for step in (2, 4):
        path = checkpoint_path(tmp_path, step)
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert newest_before(tmp_path, 4) == (checkpoint_path(tmp_path, 2), 2)
    assert newest_before(tmp_path, 5) == (checkpoint_path(tmp_path, 4), 4)


def test_a_step_beyond_the_training_is_refused(
    build_task: BuildTask, random_steps: Callable[[], Any], tmp_path: Path
) -> None:
    for step in (0, 7):
        with pytest.raises(ValueError, match=f"step {step}: the training has steps 1 to 6"):
            again(build_task(6), random_steps(), tmp_path, step)
