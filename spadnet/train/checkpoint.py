"""Checkpoints one can rely on: atomic files, plain types and tensors, the last few kept.

A checkpoint is Lightning's own dictionary (weights, optimisers, loop counters) plus the number of
finished steps. Batches, masks and noise are pure functions of the step, so nothing else is needed
to continue bit for bit.
"""

import logging
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer

from spadnet.ranks import all_rows, num_ranks

logger = logging.getLogger(__name__)

FOLDER = "checkpoints"
_STEPS_KEY = "spadnet_finished_steps"
_ROW_KEY = "spadnet_last_row"
_NAME = re.compile(r"step-(\d+)\.ckpt")
_PART = ".part"


def finished_steps(trainer: Trainer) -> int:
    """Number of training steps whose work is done, however many optimisers a step has."""
    progress: Any = trainer.fit_loop.epoch_loop.batch_progress
    return int(progress.total.processed)


def checkpoint_path(run_dir: Path, step: int) -> Path:
    """File of the checkpoint after ``step`` steps."""
    return run_dir / FOLDER / f"step-{step:08d}.ckpt"


def list_checkpoints(run_dir: Path) -> list[Path]:
    """Checkpoints of a run folder, oldest first."""
    found = ((_NAME.fullmatch(path.name), path) for path in (run_dir / FOLDER).glob("*.ckpt"))
    return [path for _, path in sorted((int(m[1]), path) for m, path in found if m)]


def find_last(run_dir: Path) -> Path | None:
    """Newest whole checkpoint of a run folder; a broken one is passed over with a warning."""
    for path in reversed(list_checkpoints(run_dir)):
        if zipfile.is_zipfile(path):  # reads the directory at the file's end
            return path
        logger.warning("%s: truncated; trying the one before", path)
    return None


def write_atomic(path: Path, write: Callable[[Any], None]) -> None:
    """Write a file so that it is whole or not there at all, and what it replaces stays till then.

    Args:
        path: File to write; its folder is made.
        write: Writes to the binary file it is given.

    Raises:
        OSError: If it cannot be written; the message names the file and the reason.
    """
    part = path.with_name(f".{path.name}{_PART}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        part.unlink(missing_ok=True)
        cause = _os_error(error)
        if cause is None:
            raise
        raise OSError(cause.errno, cause.strerror or str(cause), str(path)) from error


def _os_error(error: BaseException | None) -> OSError | None:
    """The operating system's part of an error: torch wraps it in a RuntimeError of its own."""
    while error is not None:
        if isinstance(error, OSError):
            return error
        error = error.__cause__ or error.__context__
    return None


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_checkpoint(path: Path, *, map_location: Any = "cpu", mmap: bool = False) -> dict[str, Any]:
    """Load a checkpoint, plain types and tensors only.

    Args:
        path: File of the checkpoint.
        map_location: Where to put tensors, as for ``torch.load``.
        mmap: Whether to leave tensors in the file until they are touched.

    Raises:
        ValueError: If the file is missing, broken, or no checkpoint of a spadnet run.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such checkpoint")
    try:
        state = torch.load(path, map_location=map_location, weights_only=True, mmap=mmap)
    except PermissionError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, ValueError) as error:
        raise ValueError(f"{path}: broken or not a checkpoint") from error
    if not isinstance(state, dict) or _STEPS_KEY not in state:
        raise ValueError(f"{path}: not a checkpoint of a spadnet run")
    return state


def step_of(state: Mapping[str, Any]) -> int:
    """Number of finished steps that a loaded checkpoint holds."""
    return int(state[_STEPS_KEY])


def row_of(state: Mapping[str, Any]) -> dict[str, float]:
    """What its last step logs, which may not have been written when the run was killed."""
    return dict(state.get(_ROW_KEY, {}))


class AtomicCheckpointIO(CheckpointIO):
    """Let Lightning write and read checkpoints by the functions of this module."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Write a checkpoint atomically."""
        write_atomic(Path(path), lambda file: torch.save(checkpoint, file))

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint; anything but plain types and tensors is refused."""
        return read_checkpoint(Path(path), map_location=map_location or "cpu")

    def remove_checkpoint(self, path: Any) -> None:
        """Delete a checkpoint."""
        Path(path).unlink(missing_ok=True)


class SaveCheckpoints(Callback):
    """Save every n steps and at the end, keep the last few."""

    def __init__(self, run_dir: Path, *, every_steps: int | None, keep_last: int = 2) -> None:
        """Configure.

        Args:
            run_dir: Run folder.
            every_steps: Steps between two checkpoints; None saves none.
            keep_last: How many to keep.
        """
        if (every_steps is not None and every_steps < 1) or keep_last < 1:
            raise ValueError(
                f"every_steps and keep_last must be positive, got {every_steps} and {keep_last}"
            )
        self.run_dir = run_dir
        self.every_steps = every_steps
        self.keep_last = keep_last
        self._row: dict[str, float] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove what an interrupted write may have left; see that all ranks continue alike.

        Raises:
            ValueError: If ranks found different checkpoints.
        """
        if num_ranks() > 1:
            steps = all_rows(torch.tensor([finished_steps(trainer)], device=pl_module.device))
            if steps.min() != steps.max():
                raise ValueError(
                    f"{self.run_dir}: ranks continue after steps {steps.tolist()}; "
                    "all must see the same run folder"
                )
        if trainer.is_global_zero:
            for part in (self.run_dir / FOLDER).glob(f".*{_PART}"):
                part.unlink(missing_ok=True)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save when it is time, when the training ends, and when it was asked to stop."""
        if self.every_steps is None:
            return
        step = finished_steps(trainer)
        is_last = step >= trainer.num_training_batches
        if step % self.every_steps == 0 or is_last or trainer.should_stop:
            self._row = _row_to_come(trainer)
            trainer.save_checkpoint(checkpoint_path(self.run_dir, step))
            self._row = {}
            if trainer.is_global_zero:
                for old in list_checkpoints(self.run_dir)[: -self.keep_last]:
                    old.unlink(missing_ok=True)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the step count and the row; drop what is a setting of the run and no state."""
        checkpoint[_STEPS_KEY] = finished_steps(trainer)
        checkpoint[_ROW_KEY] = self._row
        # A finished run may be continued with a larger max_steps.
        checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["is_last_batch"] = False


def _row_to_come(trainer: Trainer) -> dict[str, float]:
    """What Lightning will log of this step once all callbacks are done; nothing if it will not."""
    connector: Any = trainer._logger_connector
    if not trainer.loggers or not connector.should_update_logs:
        return {}
    return {name: float(value) for name, value in connector.metrics["log"].items()}
