"""Measure how long an optimiser step takes, without changing what is measured."""

import copy
import statistics
import time

from lightning import LightningModule
from lightning.pytorch import Callback, Trainer

from spadnet.train.datamodule import StepDataModule
from spadnet.train.host import fast_float32, keep_freed_memory
from spadnet.train.precision import choose_precision
from spadnet.train.quiet import quiet_lightning


class _Clock(Callback):
    def __init__(self, num_steps: int) -> None:
        self.num_steps = num_steps
        self.ends: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        self.ends.append(time.perf_counter())
        trainer.should_stop = len(self.ends) > self.num_steps


def seconds_per_step(
    task: LightningModule, datamodule: StepDataModule, *, num_steps: int, precision: str = "auto"
) -> float:
    """Median seconds per step, data included, after one step that warms up.

    Args:
        task: Trained on a copy; the task itself stays as it is.
        datamodule: Its batches.
        num_steps: Steps to measure.
        precision: ``"auto"`` or one of Lightning's names.
    """
    clock = _Clock(num_steps)
    keep_freed_memory()
    with fast_float32(), quiet_lightning():
        trainer = Trainer(
            precision=choose_precision(precision),
            max_epochs=1,
            logger=False,
            callbacks=[clock],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(copy.deepcopy(task), datamodule=datamodule)
    return statistics.median(b - a for a, b in zip(clock.ends, clock.ends[1:], strict=False))
