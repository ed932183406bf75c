"""A step that is not finite changes nothing: it stops the training, or is left out and counted."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from spadnet.data.batch import Batch
from spadnet.train.checkpoint import find_last, read_checkpoint
from spadnet.train.datamodule import StepDataModule
from spadnet.train.metrics_log import read_rows
from spadnet.train.non_finite import NonFiniteError, folder_of_step, read_bad_step
from spadnet.train.run import FitResult, fit
from spadnet.train.step_task import StepTask

BuildTask = Callable[[int], StepTask]
STEPS = 5


class Poisoned(torch.utils.data.Dataset[list[Batch]]):
    """Random images; one voxel of the second micro-batch of some steps is no number."""

    def __init__(self, clean: Any, *steps: int) -> None:
        self.clean = clean
        self.steps = steps

    def __getitem__(self, step: int) -> list[Batch]:
        batch: list[Batch] = self.clean[step]
        if step in self.steps:
            batch[1].image[0, 0, 0, 0, 0] = torch.nan
        return batch


def train(task: StepTask, data: Any, folder: Path, **options: Any) -> FitResult:
    settings = {"accelerator": "cpu", "precision": "32-true", "tensorboard": False}
    module = StepDataModule(data, max_steps=STEPS)
    return fit(
        task,
        module,
        folder,
        log_every_steps=1,
        show_progress=False,
        **{**settings, **options},
    )


def state(folder: Path) -> dict[str, Any]:
    last = find_last(folder)
    assert last is not None
    return read_checkpoint(last)


def test_a_step_that_is_not_finite_stops_and_is_kept(
    build_task: BuildTask, random_steps: Callable[[], Any], tmp_path: Path
) -> None:
    match = r"step 4: train/loss .*not finite, with 3-5-0, 3-5-1, 3-3-0, 3-3-1; kept in .*00000004"
    with pytest.raises(NonFiniteError, match=match):
        train(build_task(STEPS), Poisoned(random_steps(), 3), tmp_path)
    (kept,) = read_bad_step(tmp_path, 4)
    assert kept["micro_batches"][1]["keys"] == ["3-3-0", "3-3-1"]
    assert kept["micro_batches"][1]["image"].isnan().sum() == 1
    assert kept["losses"][0] == pytest.approx(kept["losses"][0])  # a number
    assert any(loss != loss for loss in kept["losses"])
    # What is kept is the state before the step: from there all goes on as if nothing had been.
    before = folder_of_step(tmp_path, 4) / "before.ckpt"
    train(build_task(STEPS), random_steps(), tmp_path / "again", resume=str(before))
    train(build_task(STEPS), random_steps(), tmp_path / "whole")
    ours, theirs = (state(tmp_path / name)["state_dict"] for name in ("again", "whole"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert read_rows(tmp_path / "again" / "metrics.csv")[0]["step"] == "4"


def test_steps_are_left_out_up_to_a_number(
    build_task: BuildTask,
    random_steps: Callable[[], Any],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING, logger="spadnet")
    states = []

    class Note(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            states.append({name: value.clone() for name, value in pl_module.state_dict().items()})

    data, options = Poisoned(random_steps(), 1, 3), {"skip_non_finite": 2, "save_every_steps": 3}
    result = train(build_task(STEPS), data, tmp_path, callbacks=[Note()], **options)
    assert result.step == STEPS
    for bad in (1, 3):
        after, before = states[bad], states[bad - 1]
        changed = {name for name in after if not torch.equal(after[name], before[name])}
        # The start of the codebook belongs to no single batch, and stays.
        assert changed <= {name for name in after if "quantizer" in name and bad == 1}
    assert any(not torch.equal(states[4][n], states[3][n]) for n in states[4])
    assert "left out, 2 of at most 2" in caplog.text
    rows = read_rows(tmp_path / "metrics.csv")
    assert [float(row["train/skipped_steps"]) for row in rows] == [0, 1, 1, 2, 2]
    # The number is remembered: a third is one too many, also after a resume.
    third = Poisoned(random_steps(), 1, 3, 4)
    (tmp_path / "checkpoints" / "step-00000005.ckpt").unlink()
    with pytest.raises(NonFiniteError, match="step 5"):
        train(build_task(STEPS), third, tmp_path, skip_non_finite=2, resume="auto")


def test_float16_scales_its_losses(
    build_task: BuildTask, quick_fit: Callable[..., FitResult], tmp_path: Path
) -> None:
    task = build_task(STEPS)
    start = {name: value.clone() for name, value in task.trained.named_parameters()}
    quick_fit(task, tmp_path, max_steps=STEPS, precision="16-mixed")
    rows = read_rows(tmp_path / "metrics.csv")
    assert all(float(row["train/loss"]) > 0 for row in rows)
    assert float(rows[-1]["train/loss_scale"]) >= 1
    assert any(not torch.equal(start[n], value) for n, value in task.trained.named_parameters())
    plugin = [value for key, value in state(tmp_path).items() if key == "ScaledPrecision"]
    assert plugin[0]["scale"] > 0


def test_overflow_of_float16_lowers_the_scale_and_is_no_fault(
    build_task: BuildTask, quick_fit: Callable[..., FitResult], tmp_path: Path
) -> None:
    task = build_task(2)
    before = {name: value.clone() for name, value in task.trained.named_parameters()}
    for update in task.updates():
        next(update.module.parameters()).register_hook(lambda grad: grad * torch.inf)
    quick_fit(task, tmp_path, max_steps=2, precision="16-mixed")
    scales = [float(row["train/loss_scale"]) for row in read_rows(tmp_path / "metrics.csv")]
    assert scales == [65536.0, 32768.0]
    assert all(torch.equal(before[n], value) for n, value in task.trained.named_parameters())


def test_average_is_kept_resumed_and_is_the_final_model(
    build_task: BuildTask, random_steps: Callable[[], Any], tmp_path: Path
) -> None:
    def build() -> StepTask:
        task = build_task(STEPS)
        task.optim = task.optim._replace(ema=0.9)
        task.keep_average()
        return task

    whole = build()
    train(whole, random_steps(), tmp_path / "whole", save_every_steps=3)
    assert whole.final_model is whole.averaged
    pairs = zip(whole.final_model.parameters(), whole.trained.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)
    (tmp_path / "whole" / "checkpoints" / "step-00000005.ckpt").unlink()
    again = build()
    train(again, random_steps(), tmp_path / "whole", resume="auto")
    ours, theirs = again.state_dict(), whole.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_deterministic_mode_is_on_while_training_only(
    build_task: BuildTask, quick_fit: Callable[..., FitResult], tmp_path: Path
) -> None:
    task = build_task(1)
    seen = []
    accumulate = task.accumulate

    def noting(batch: Any, step: int) -> Any:
        seen.append(torch.are_deterministic_algorithms_enabled())
        return accumulate(batch, step)

    task.accumulate = noting  # type: ignore[method-assign]
    quick_fit(task, tmp_path, max_steps=1, deterministic=True)
    assert seen == [True]
    assert not torch.are_deterministic_algorithms_enabled()
