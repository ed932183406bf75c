"""Show how far a training is: a bar in a terminal, a line now and then elsewhere."""

import logging
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column

from spadnet.data.batch import Batch
from spadnet.train.checkpoint import finished_steps

logger = logging.getLogger(__name__)

LOSS = "train/loss"


class Speed:
    """Steps and images per second over the last few seconds."""

    def __init__(self, *, memory: float = 20.0) -> None:
        """Configure.

        Args:
            memory: Seconds after which a past speed has lost most of its weight.
        """
        self.memory = memory
        self.num_images = 0
        self._seconds_per_step: float | None = None
        self._images_per_second: float | None = None
        self._mark = (0.0, 0, 0)  # time, steps, images

    def start(self, now: float, step: int) -> None:
        """Begin to measure after ``step`` steps."""
        self._mark = (now, step, self.num_images)

    def update(self, now: float, step: int) -> None:
        """Take note of the steps and images since the last call."""
        then, before, images = self._mark
        seconds, steps = now - then, step - before
        if seconds <= 0 or steps <= 0:
            return
        weight = 1 - 2.718281828 ** (-seconds / self.memory)
        for name, value in (
            ("_seconds_per_step", seconds / steps),
            ("_images_per_second", (self.num_images - images) / seconds),
        ):
            old = getattr(self, name)
            setattr(self, name, value if old is None else old + weight * (value - old))
        self._mark = (now, step, self.num_images)

    @property
    def images_per_second(self) -> float:
        """Images per second, 0 before the first update."""
        return self._images_per_second or 0.0

    def seconds_left(self, steps: int) -> float | None:
        """Seconds that ``steps`` more steps will take, None before the first update."""
        return None if self._seconds_per_step is None else steps * self._seconds_per_step


class ShowProgress(Callback):
    """Steps, loss, images per second, time so far and time left."""

    def __init__(
        self,
        *,
        description: str = "training",
        every_seconds: float = 0.5,
        line_every_seconds: float = 10.0,
        console: Console | None = None,
    ) -> None:
        """Configure.

        Args:
            description: Stands before the bar.
            every_seconds: Time between two updates of the bar.
            line_every_seconds: Time between two lines where there is no terminal.
            console: Where to show the bar; standard error by default.
        """
        self.description = description
        self.console = console or Console(stderr=True)
        self.every_seconds = every_seconds if self.console.is_terminal else line_every_seconds
        self.speed = Speed()
        self._bar: Progress | None = None
        self._start = self._shown = 0.0
        self._total = 0

    @property
    def num_images(self) -> int:
        """Images seen since the start or the resume, by all ranks."""
        return self.speed.num_images

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the bar."""
        step, self._total = finished_steps(trainer), int(trainer.num_training_batches)
        self._start = self._shown = time.monotonic()
        self.speed.start(self._start, step)
        if self.console.is_terminal and trainer.is_global_zero:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None, table_column=Column(ratio=1)),
                TextColumn("{task.completed}/{task.total}", table_column=Column(no_wrap=True)),
                TextColumn("{task.fields[status]}", table_column=Column(no_wrap=True)),
                console=self.console,
                expand=True,
            )
            self._bar.add_task(self.description, total=self._total, completed=step, status="")
            self._bar.start()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Sequence[Batch],
        batch_idx: int,
    ) -> None:
        """Count the images, and show where the training is when it is time."""
        self.speed.num_images += trainer.world_size * sum(micro.image.shape[0] for micro in batch)
        now, step = time.monotonic(), finished_steps(trainer)
        is_last = step >= self._total or trainer.should_stop
        if (now - self._shown < self.every_seconds and not is_last) or not trainer.is_global_zero:
            return
        self._shown = now
        self.speed.update(now, step)
        loss = trainer.callback_metrics.get(LOSS)  # read here only: it waits for the device
        status = self._status(step, None if loss is None else float(loss), now)
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step, status=status)
        else:
            logger.info("%s %d/%d: %s", self.description, step, self._total, status)

    def _status(self, step: int, loss: float | None, now: float) -> str:
        left = self.speed.seconds_left(self._total - step)
        parts = [
            "" if loss is None else f"loss {loss:.4f}",
            f"{self.speed.images_per_second:.1f} images/s",
            _clock(now - self._start),
            "" if left is None else f"{_clock(left)} left",
        ]
        return ", ".join(part for part in parts if part)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the bar as it is."""
        self._stop()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Leave the bar as it is."""
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
