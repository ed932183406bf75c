"""Feed a training with the batches of its steps, from any step on."""

import signal
import time
from collections.abc import Iterator, Sized
from contextlib import suppress
from typing import Any, cast

from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset, Sampler

from spadnet.data.batch import Batch
from spadnet.data.labelled_steps import RankedSteps
from spadnet.train.checkpoint import finished_steps


class StepSampler(Sampler[int], Sized):
    """The steps ``start`` to ``stop - 1`` in order."""

    def __init__(self, start: int, stop: int) -> None:
        """Configure.

        Args:
            start: First step to do.
            stop: Number of steps of the whole training.
        """
        self.start = start
        self.stop = stop

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.stop))

    def __len__(self) -> int:
        # Of the whole training: Lightning counts the steps before ``start`` as done.
        return self.stop


class StepDataModule(LightningDataModule):
    """Load item ``step`` of a map-style data set for each optimiser step.

    An item is the list of micro-batches of that step and a pure function of it, so continuing a
    training needs the number of finished steps and nothing else, at any number of workers.
    """

    def __init__(
        self, dataset: Dataset[list[Batch]], *, max_steps: int, num_workers: int = 0
    ) -> None:
        """Configure.

        Args:
            dataset: Item i is the work of step i.
            max_steps: Number of steps of the whole training.
            num_workers: Processes that prepare batches ahead; 0 prepares them in this one.
        """
        super().__init__()
        if max_steps < 1:
            raise ValueError(f"max_steps must be positive, got {max_steps}")
        if num_workers < 0:
            raise ValueError(f"num_workers must not be negative, got {num_workers}")
        self.dataset = dataset
        self.max_steps = max_steps
        self.num_workers = num_workers
        self._loader: _TimedLoader | None = None

    @property
    def wait_share(self) -> float | None:
        """Share of the time spent on waiting for batches, without the first; None before two."""
        return None if self._loader is None else self._loader.wait_share

    @property
    def seconds_waited(self) -> float:
        """Seconds spent on waiting for batches, without the first."""
        return 0.0 if self._loader is None else self._loader.waited

    def on_after_batch_transfer(self, batch: list[Batch], dataloader_idx: int) -> list[Batch]:
        """Change intensities where the images are now."""
        return [micro.augmented() for micro in batch]

    def train_dataloader(self) -> DataLoader[list[Batch]]:
        """Batches from the first step that is not finished."""
        trainer, dataset = self.trainer, self.dataset
        start = finished_steps(trainer) if trainer is not None else 0
        if trainer is not None and trainer.world_size > 1:
            assert isinstance(dataset, RankedSteps)
            dataset = cast(
                Dataset[list[Batch]], dataset.for_rank(trainer.global_rank, trainer.world_size)
            )
        self._loader = _TimedLoader(
            dataset,
            batch_size=None,
            sampler=StepSampler(start, self.max_steps),
            num_workers=self.num_workers,
            worker_init_fn=_ignore_interrupt,
            pin_memory=self.trainer is not None
            and self.trainer.strategy.root_device.type == "cuda",
        )
        return self._loader


class _TimedLoader(DataLoader[list[Batch]]):
    """Measures how long its user waits for batches."""

    wait_share: float | None = None
    waited = 0.0

    def __iter__(self) -> Any:
        batches = super().__iter__()
        with suppress(StopIteration):
            first = next(batches)
            begin = time.monotonic()
            yield first
            while True:
                asked = time.monotonic()
                batch = next(batches)
                now = time.monotonic()
                self.waited += now - asked
                self.wait_share = self.waited / (now - begin)
                yield batch


def _ignore_interrupt(worker: int) -> None:
    """Leave Ctrl-C, which the terminal sends to every process, to the main process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
