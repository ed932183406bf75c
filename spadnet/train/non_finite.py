"""Keep a step whose loss or gradient was not finite, so that it can be looked at again."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from spadnet.train.checkpoint import write_atomic

logger = logging.getLogger(__name__)

FOLDER = "non_finite"
STATE_NAME = "before.ckpt"


class NonFiniteError(ValueError):
    """A training stopped because a loss or a gradient was not finite."""


def folder_of_step(run_dir: Path, step: int) -> Path:
    """Where a step is kept; steps count from 1, as in logs and messages."""
    return run_dir / FOLDER / f"step-{step:08d}"


def batch_path(folder: Path, rank: int) -> Path:
    """File with the part of a batch that one rank had."""
    return folder / f"batch-{rank}.pt"


def keep_bad_step(
    trainer: Trainer,
    batch: Sequence[Any],
    step: int,
    *,
    losses: Sequence[float],
    metrics: Mapping[str, float],
) -> Path | None:
    """Write the batch of each rank, and a checkpoint of the state before the step.

    Call it on every rank, before anything of the step has changed weights or buffers.

    Args:
        trainer: In the midst of the step.
        batch: Micro-batches of this rank.
        step: Number of finished steps.
        losses: Of this rank's micro-batches.
        metrics: Of the step.

    Returns:
        Folder, ``non_finite/step-N`` of the run; None if it could not be written.
    """
    folder = folder_of_step(Path(trainer.default_root_dir), step + 1)
    content = {
        "step": step + 1,
        "micro_batches": [_plain(micro) for micro in batch],
        "plans": _plain(_plans(trainer, step)),
        "losses": list(losses),
        "metrics": dict(metrics),
    }
    try:
        path = batch_path(folder, trainer.global_rank)
        write_atomic(path, lambda file: torch.save(content, file))
        if step > 0:  # the first step starts from the configuration
            with _as_after_last_step(trainer):
                trainer.save_checkpoint(folder / STATE_NAME)
    except OSError as error:
        logger.warning("the step cannot be kept: %s", error)
        return None
    return folder


def read_bad_step(run_dir: Path, step: int) -> list[dict[str, Any]]:
    """What each rank had in a step that was kept; nothing if it was not.

    Raises:
        ValueError: If a file is damaged.
    """
    found = []
    for path in sorted(folder_of_step(run_dir, step).glob("batch-*.pt")):
        try:
            found.append(torch.load(path, weights_only=True))
        except Exception as error:
            raise ValueError(f"{path}: damaged") from error
    return found


def _plans(trainer: Trainer, step: int) -> Any:
    dataset: Any = getattr(trainer.train_dataloader, "dataset", None)
    return dataset.plans(step) if hasattr(dataset, "plans") else None


def _plain(value: Any) -> Any:
    """Named tuples as dictionaries, tensors on the CPU, everything else as plain types."""
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if hasattr(value, "_asdict"):
        return {name: _plain(part) for name, part in value._asdict().items()}
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value


@contextmanager
def _as_after_last_step(trainer: Trainer) -> Iterator[None]:
    """Let Lightning's counters stand where they were when the step before had just ended."""
    loop: Any = trainer.fit_loop.epoch_loop
    counters = loop.batch_progress.total, loop.batch_progress.current
    before = [(c.ready, c.started, c.completed) for c in counters]
    logged = loop._batches_that_stepped
    try:
        for counter in counters:
            counter.ready = counter.started = counter.processed
            counter.completed = counter.processed - 1
        loop._batches_that_stepped = logged - 1
        yield
    finally:
        for counter, values in zip(counters, before, strict=True):
            counter.ready, counter.started, counter.completed = values
        loop._batches_that_stepped = logged
