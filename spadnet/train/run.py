"""Run a training: one call for every stage, in a run folder that can be continued."""

import logging
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning import LightningModule
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from torch import Tensor, nn

from spadnet.train.checkpoint import (
    AtomicCheckpointIO,
    SaveCheckpoints,
    checkpoint_path,
    find_last,
    finished_steps,
    read_checkpoint,
    row_of,
    step_of,
)
from spadnet.train.datamodule import StepDataModule
from spadnet.train.graphs import compile_modules, num_graphs
from spadnet.train.host import deterministic_algorithms, fast_float32, keep_freed_memory
from spadnet.train.keep_best import KeepBest
from spadnet.train.launch import end_with_others, find_launch
from spadnet.train.loggers import build_loggers
from spadnet.train.metrics_log import complete_logs
from spadnet.train.precision import ScaledPrecision, choose_precision
from spadnet.train.progress import ShowProgress
from spadnet.train.quiet import quiet_lightning
from spadnet.train.run_folder import SUMMARY_FILE, checkpoint_to_resume, write_json
from spadnet.train.step_task import StepTask
from spadnet.train.stop import StopOnSignal
from spadnet.train.strategy import build_strategy
from spadnet.train.validation import Validate

logger = logging.getLogger(__name__)


class FitResult(NamedTuple):
    """How a training ended.

    Attributes:
        step: Number of finished steps.
        seconds: Duration of this call.
        num_images: Images seen in this call, by all ranks.
        metrics: Last value of everything logged.
        checkpoint: Newest checkpoint.
        stopped_by: Number of the signal that ended it early, None if it ran to its end.
    """

    step: int
    seconds: float
    num_images: int
    metrics: dict[str, float]
    checkpoint: Path | None
    stopped_by: int | None


class _SeedEachStep(Callback):
    """Make dropout and its like a pure function of seed, step and rank, as the batches are.

    It is the one thing that depends on the number of ranks: masks and noise are drawn for the whole
    batch, but layers draw for their own rank's part.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        step = finished_steps(trainer)
        torch.manual_seed(
            ((self.seed * 1_000_003 + step) * 8_191 + trainer.global_rank) % (1 << 63)
        )


def fit(
    task: StepTask,
    datamodule: StepDataModule,
    run_dir: Path,
    *,
    precision: str = "auto",
    accelerator: str = "auto",
    strategy: str = "auto",
    rank_timeout: float = 600.0,
    threads: int | None = None,
    compile_backend: str | None = None,
    deterministic: bool = False,
    skip_non_finite: int = 0,
    resume: str | None = None,
    save_every_steps: int | None = 1000,
    keep_last: int = 2,
    log_every_steps: int = 10,
    tensorboard: bool = True,
    csv_file: bool = True,
    services: Sequence[str] = (),
    project: str = "spadnet",
    show_progress: bool = True,
    description: str = "training",
    seed: int = 0,
    callbacks: Sequence[Callback] = (),
) -> FitResult:
    """Train ``task`` on the steps of ``datamodule``.

    Args:
        task: A task whose ``training_step`` does one whole optimiser step.
        datamodule: The batches; its ``max_steps`` is the length of the training.
        run_dir: Folder of checkpoints, logs and ``summary.json``.
        precision: ``"auto"`` or one of Lightning's names.
        accelerator: ``"auto"``, ``"cpu"`` or ``"cuda"``.
        strategy: What each of several ranks holds, see :mod:`spadnet.train.strategy`; torchrun or
            srun start the ranks.
        rank_timeout: Seconds after which a rank gives up waiting for the others.
        threads: CPU threads; None leaves torch's choice.
        compile_backend: What ``torch.compile`` compiles with; None runs without it.
        deterministic: Whether to refuse operations that may give other bits each time.
        skip_non_finite: Steps that may be left out for a loss or gradient that is not finite.
        resume: ``"auto"``, a checkpoint's file, or None for a new run.
        save_every_steps: Steps between checkpoints; None saves none.
        keep_last: Number of checkpoints to keep.
        log_every_steps: Steps between two rows of the logs.
        tensorboard: Whether to write TensorBoard events.
        csv_file: Whether to write ``metrics.csv``.
        services: Further loggers, see :mod:`spadnet.train.loggers`.
        project: Name of the project there.
        show_progress: Whether to show a bar, or lines where there is no terminal.
        description: Stands before the bar.
        seed: Seed of what draws from torch's global generator.
        callbacks: Further callbacks, called before a checkpoint is saved.

    Returns:
        How it ended. Ctrl-C and SIGTERM end it after the current step, saved.

    Raises:
        NonFiniteError: If a loss or gradient is not finite once too often.
        ValueError: If the checkpoint does not fit the task.
        ConnectionError: If another rank ended.
        OSError: If the disk is full; the checkpoint before is untouched.
        KeyboardInterrupt: If it was told to stop twice, or before the first step.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    checkpoint = checkpoint_to_resume(run_dir, resume)
    begin = time.monotonic()
    start_step, last_row = 0, {}
    if checkpoint is not None:
        state = read_checkpoint(checkpoint, mmap=True)
        start_step, last_row = step_of(state), row_of(state)
        check_fits(task, state["state_dict"], source=checkpoint)
        if start_step >= datamodule.max_steps:
            logger.info("%s: all %d steps are done", run_dir, start_step)
            task.load_state_dict(state["state_dict"])
            return FitResult(start_step, 0.0, 0, {}, checkpoint, None)
        logger.info("continuing %s after step %d", checkpoint, start_step)
    elif resume == "auto":
        logger.info("%s: no checkpoint yet, starting anew", run_dir)

    launch = find_launch()
    stop = StopOnSignal()
    progress = ShowProgress(description=description)
    task.skip_non_finite = skip_non_finite
    if compile_backend is not None:
        compile_modules(task.to_compile(), backend=compile_backend)
    device = device_kind(accelerator)
    resolved = choose_precision(precision, device=device)
    scaled = [ScaledPrecision(device)] if resolved == "16-mixed" else []
    with quiet_lightning():
        trainer = Trainer(
            accelerator=accelerator,
            devices=1 if launch is None else launch.local_world_size,
            num_nodes=1 if launch is None else launch.num_nodes,
            strategy=build_strategy(strategy, launch, timeout=rank_timeout),
            precision=None if scaled else resolved,
            max_epochs=1,  # an epoch is the whole training; the sampler ends it
            logger=build_loggers(
                run_dir,
                start_step=start_step,
                tensorboard=tensorboard,
                csv_file=csv_file,
                services=services,
                project=project,
            ),
            callbacks=[
                _SeedEachStep(seed),
                *callbacks,
                stop,
                *([progress] if show_progress else []),
                SaveCheckpoints(run_dir, every_steps=save_every_steps, keep_last=keep_last),
            ],
            plugins=[
                AtomicCheckpointIO(),
                *scaled,
                # Said, not guessed: a batch script's own process is no task of a scheduler's step.
                LightningEnvironment() if launch is None else TorchElasticEnvironment(),
            ],
            default_root_dir=run_dir,
            log_every_n_steps=min(log_every_steps, datamodule.max_steps),
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
    complete_logs(trainer.loggers, last_row, step=start_step - 1)
    keep_freed_memory()
    exact = deterministic_algorithms() if deterministic else nullcontext()
    with fast_float32(), exact, quiet_lightning(), end_with_others(launch):
        try:
            trainer.fit(
                task,
                datamodule=datamodule,
                ckpt_path=None if checkpoint is None else str(checkpoint),
                weights_only=True,
            )
        except SystemExit as error:  # what Lightning makes of Ctrl-C outside of our steps
            raise KeyboardInterrupt from error
    step = finished_steps(trainer)
    result = FitResult(
        step=step,
        seconds=time.monotonic() - begin,
        num_images=progress.num_images,
        metrics={name: float(value) for name, value in trainer.callback_metrics.items()}
        | dict(
            chain(
                *(one.latest.items() for one in callbacks if isinstance(one, Validate | KeepBest))
            )
        ),
        checkpoint=find_last(run_dir),
        stopped_by=stop.received if step < datamodule.max_steps else None,
    )
    if trainer.is_global_zero:
        wait_share = datamodule.wait_share
        if wait_share is not None:
            logger.info("waited for data %.1f %% of the time", 100 * wait_share)
        _write_summary(
            run_dir,
            result,
            trainer,
            precision=resolved,
            start_step=start_step,
            wait_share=wait_share,
        )
    return result


def device_kind(accelerator: str) -> str:
    """Kind of device that Lightning will choose."""
    if accelerator != "auto":
        return "cuda" if accelerator == "gpu" else accelerator
    return "cuda" if torch.cuda.is_available() else "cpu"


def check_fits(task: nn.Module, saved: Mapping[str, Tensor], *, source: Path) -> None:
    """Say in one line what of a checkpoint does not fit the task.

    Args:
        task: Where the weights shall go.
        saved: Weights of the checkpoint.
        source: Named in the error.
    """
    there = {name: tuple(tensor.shape) for name, tensor in saved.items()}
    here = {name: tuple(tensor.shape) for name, tensor in task.state_dict().items()}
    differing = sorted(n for n in there.keys() | here.keys() if there.get(n) != here.get(n))
    if differing:
        name = differing[0]
        raise ValueError(
            f"{source}: does not fit this configuration: {name} is {there.get(name, 'missing')} "
            f"there and {here.get(name, 'missing')} here; {len(differing)} of {len(here)} differ"
        )


def _write_summary(
    run_dir: Path,
    result: FitResult,
    trainer: Trainer,
    *,
    precision: str,
    start_step: int,
    wait_share: float | None,
) -> None:
    write_json(
        run_dir / SUMMARY_FILE,
        {
            "status": "stopped" if result.stopped_by is not None else "finished",
            "steps": result.step,
            "resumed_after_step": start_step,
            "seconds": round(result.seconds, 3),
            "images": result.num_images,
            "images_per_second": round(result.num_images / max(result.seconds, 1e-9), 3),
            "data_wait_share": None if wait_share is None else round(wait_share, 4),
            "precision": precision,
            "device": str(trainer.strategy.root_device),
            "ranks": trainer.world_size,
            "threads": torch.get_num_threads(),
            "graphs": num_graphs(),
            "checkpoint": None
            if result.checkpoint is None
            else str(checkpoint_path(Path(), result.step)),
            "metrics": {k: v for k, v in result.metrics.items() if math.isfinite(v)},
        },
    )
