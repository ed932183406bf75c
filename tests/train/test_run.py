"""A training stopped anywhere and continued equals the undisturbed one, bit for bit."""

import json
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule
from lightning.pytorch import Callback, Trainer

from spadnet.train.checkpoint import find_last, finished_steps, list_checkpoints, read_checkpoint
from spadnet.train.metrics_log import read_rows
from spadnet.train.run import FitResult

BuildTask = Callable[[int], LightningModule]
Fit = Callable[..., FitResult]


class SignalAt(Callback):
    """Send this process a signal during a step."""

    def __init__(self, step: int, number: int) -> None:
        self.step = step
        self.number = number

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if finished_steps(trainer) == self.step:
            os.kill(os.getpid(), self.number)


def same(a: Any, b: Any) -> bool:
    """Whether nested plain types and tensors are equal to the bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def test_resumed_equals_undisturbed(build_task: BuildTask, quick_fit: Fit, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    quick_fit(build_task(6), whole, max_steps=6)
    stopped = quick_fit(
        build_task(6), broken, max_steps=6, callbacks=[SignalAt(2, signal.SIGINT)], num_workers=1
    )
    assert stopped.stopped_by == signal.SIGINT
    assert stopped.step == 3
    task = build_task(6)
    with torch.no_grad():
        for parameter in task.parameters():
            parameter.add_(1.0)  # whatever it starts with, the checkpoint decides
    resumed = quick_fit(task, broken, max_steps=6, resume="auto")
    assert resumed.stopped_by is None
    assert resumed.step == 6

    ours, theirs = find_last(broken), find_last(whole)
    assert ours is not None
    assert theirs is not None
    a, b = read_checkpoint(ours), read_checkpoint(theirs)
    assert same(a["state_dict"], b["state_dict"])
    assert same(a["optimizer_states"], b["optimizer_states"])
    assert a["global_step"] == b["global_step"]
    losses = [
        [row["train/loss"] for row in read_rows(run / "metrics.csv")] for run in (broken, whole)
    ]
    assert losses[0] == losses[1]


def test_checkpoints_are_plain_and_pruned(
    build_task: BuildTask, quick_fit: Fit, tmp_path: Path
) -> None:
    quick_fit(build_task(5), tmp_path, max_steps=5, save_every_steps=1, keep_last=2)
    assert [path.name for path in list_checkpoints(tmp_path)] == [
        "step-00000004.ckpt",
        "step-00000005.ckpt",
    ]
    torch.load(list_checkpoints(tmp_path)[0], weights_only=True)
    assert not list(tmp_path.rglob("*.part"))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert summary["steps"] == 5
    assert summary["images"] == 5 * 4
    assert 0 < summary["data_wait_share"] < 1


def test_finished_run_is_left_alone_and_can_be_extended(
    build_task: BuildTask, quick_fit: Fit, tmp_path: Path
) -> None:
    quick_fit(build_task(6), tmp_path, max_steps=2)
    with pytest.raises(ValueError, match="holds a run already"):
        quick_fit(build_task(6), tmp_path, max_steps=2)
    again = build_task(6)
    result = quick_fit(again, tmp_path, max_steps=2, resume="auto")
    assert result.num_images == 0
    last = find_last(tmp_path)
    assert last is not None
    assert same(dict(again.state_dict()), dict(read_checkpoint(last)["state_dict"]))
    extended = quick_fit(build_task(6), tmp_path, max_steps=4, resume="auto")
    assert extended.step == 4
    assert extended.num_images == 2 * 4


def test_sigterm_stops_with_a_checkpoint(
    build_task: BuildTask, quick_fit: Fit, tmp_path: Path
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    result = quick_fit(
        build_task(6), tmp_path, max_steps=6, callbacks=[SignalAt(1, signal.SIGTERM)]
    )
    assert result.stopped_by == signal.SIGTERM
    assert result.checkpoint is not None
    assert result.checkpoint.name == "step-00000002.ckpt"
    assert signal.getsignal(signal.SIGTERM) == before


def test_checkpoint_of_other_widths_is_refused_in_one_line(
    build_task: BuildTask, quick_fit: Fit, tmp_path: Path
) -> None:
    quick_fit(build_task(2), tmp_path, max_steps=2)
    other = build_task(4)
    other.extra = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"not fit this configuration: extra\.bias is missing"):
        quick_fit(other, tmp_path, max_steps=4, resume="auto")


@pytest.mark.parametrize("build_task", ["mim"], indirect=True)
def test_a_stop_between_two_rows_leaves_no_row(
    build_task: BuildTask, quick_fit: Fit, tmp_path: Path
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    quick_fit(build_task(6), whole, max_steps=6, log_every_steps=2)
    stop = SignalAt(2, signal.SIGTERM)
    assert quick_fit(
        build_task(6), broken, max_steps=6, log_every_steps=2, callbacks=[stop]
    ).stopped_by
    assert [row["step"] for row in read_rows(broken / "metrics.csv")] == ["2"]
    quick_fit(build_task(6), broken, max_steps=6, log_every_steps=2, resume="auto")
    assert read_rows(broken / "metrics.csv") == read_rows(whole / "metrics.csv")


class KilledAfterSaving(Callback):
    """Breaks a training off between the checkpoint of a step and the row of its metrics."""

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, state: Any) -> None:
        if finished_steps(trainer) == 4:
            trainer.fit_loop.epoch_loop.on_advance_end = self.die  # type: ignore[method-assign]
            trainer.logger.log_metrics = self.die  # type: ignore[union-attr, method-assign]

    def die(self, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError("killed")


def test_a_step_that_was_saved_and_not_logged_is_logged_on_resume(
    build_task: BuildTask, quick_fit: Fit, tmp_path: Path
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    quick_fit(build_task(6), whole, max_steps=6)
    with pytest.raises(RuntimeError, match="killed"):
        quick_fit(
            build_task(6), broken, max_steps=6, save_every_steps=2, callbacks=[KilledAfterSaving()]
        )
    assert [row["step"] for row in read_rows(broken / "metrics.csv")] == ["1", "2", "3"]
    quick_fit(build_task(6), broken, max_steps=6, resume="auto")
    assert (broken / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()


class FullDiskAt(Callback):
    """Lets no file grow beyond a few kilobytes from some step on."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if finished_steps(trainer) == self.step:
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))


def test_full_disk_while_a_checkpoint_is_written_loses_nothing(
    build_task: BuildTask, quick_fit: Fit, tmp_path: Path
) -> None:
    whole, full = tmp_path / "whole", tmp_path / "full"
    quick_fit(build_task(6), whole, max_steps=6)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(OSError, match=r"File too large: .*step-00000004\.ckpt"):
            quick_fit(
                build_task(6), full, max_steps=6, save_every_steps=2, callbacks=[FullDiskAt(3)]
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in (full / "checkpoints").iterdir()] == ["step-00000002.ckpt"]
    quick_fit(build_task(6), full, max_steps=6, save_every_steps=2, resume="auto")
    states = [
        read_checkpoint(path / "checkpoints" / "step-00000006.ckpt") for path in (whole, full)
    ]
    assert same(states[0]["state_dict"], states[1]["state_dict"])
    assert same(states[0]["optimizer_states"], states[1]["optimizer_states"])


def test_second_signal_stops_at_once_without_saving(
    build_task: BuildTask, quick_fit: Fit, tmp_path: Path
) -> None:
    before = signal.getsignal(signal.SIGINT)
    twice = [SignalAt(1, signal.SIGINT), SignalAt(1, signal.SIGINT)]
    with pytest.raises(KeyboardInterrupt):
        quick_fit(build_task(6), tmp_path, max_steps=6, callbacks=twice)
    assert find_last(tmp_path) is None
    assert signal.getsignal(signal.SIGINT) == before
