"""Progress tells speed and time left, as a bar in a terminal and as lines elsewhere."""

import io
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from lightning import LightningModule
from rich.console import Console

from spadnet.train import run as run_module
from spadnet.train.progress import ShowProgress, Speed
from spadnet.train.run import FitResult

BuildTask = Callable[[int], LightningModule]
Fit = Callable[..., FitResult]


def test_time_left_counts_the_steps_of_this_call_only() -> None:
    speed = Speed()
    speed.start(100.0, step=50)
    assert speed.seconds_left(10) is None
    for step in range(51, 61):
        speed.num_images += 8
        speed.update(100.0 + 2.0 * (step - 50), step)
    assert speed.seconds_left(40) == pytest.approx(80.0)
    assert speed.images_per_second == pytest.approx(4.0)


def test_speed_follows_a_change() -> None:
    speed = Speed(memory=10.0)
    speed.start(0.0, step=0)
    speed.update(10.0, 10)
    for step in range(11, 40):
        speed.update(10.0 + 5.0 * (step - 10), step)
    left = speed.seconds_left(1)
    assert left is not None
    assert 4.5 < left <= 5.0


def test_lines_where_there_is_no_terminal(
    build_task: BuildTask, quick_fit: Fit, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="spadnet"):
        quick_fit(build_task(3), tmp_path, max_steps=3, description="tiny")
    lines = [message for message in caplog.messages if message.startswith("tiny ")]
    assert lines[-1].startswith("tiny 3/3: loss ")
    assert "images/s" in lines[-1]
    assert lines[-1].endswith(" left")


def test_bar_in_a_terminal(
    build_task: BuildTask, quick_fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=80)

    def show(*, description: str) -> ShowProgress:
        return ShowProgress(description=description, every_seconds=0.0, console=console)

    monkeypatch.setattr(run_module, "ShowProgress", show)
    quick_fit(build_task(3), tmp_path, max_steps=3, description="tiny")
    text = screen.getvalue()
    assert "3/3" in text
    assert "images/s" in text
    assert "0:00:00 left" in text
