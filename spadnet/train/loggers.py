"""The loggers of a run, and what they show besides numbers."""

import importlib.util
import os
import uuid
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from torch import Tensor

from spadnet.train.checkpoint import write_atomic
from spadnet.train.launch import is_first_rank
from spadnet.train.metrics_log import CSV_NAME, CsvLog

SERVICES = ("wandb", "mlflow")


def check_services(services: Sequence[str]) -> None:
    """Refuse a service whose package is not installed.

    Args:
        services: Of ``SERVICES``.

    Raises:
        ValueError: Naming the extra that has it.
    """
    for name in services:
        if name not in SERVICES:
            raise ValueError(f"unknown service {name!r}; there are {', '.join(SERVICES)}")
        if importlib.util.find_spec(name) is None:
            raise ValueError(
                f"logger.{name}=true needs the package {name}: pip install 'spadnet[{name}]'"
            )


def build_loggers(
    run_dir: Path,
    *,
    start_step: int = 0,
    tensorboard: bool = True,
    csv_file: bool = True,
    services: Sequence[str] = (),
    project: str = "spadnet",
) -> list[Logger]:
    """Build the loggers of a run.

    Args:
        run_dir: Run folder.
        start_step: Number of steps already done; what was logged past it is dropped.
        tensorboard: Whether to write TensorBoard events.
        csv_file: Whether to write the CSV file.
        services: Of ``SERVICES``; a resumed run goes on in theirs. Each is told where to log by
            its own environment variables; MLflow logs into the run folder by default.
        project: Name of the project, or experiment, at a service.
    """
    check_services(services)
    loggers: list[Logger] = []
    if csv_file:
        loggers.append(CsvLog(run_dir / CSV_NAME, start_step=start_step))
    if tensorboard:
        loggers.append(
            TensorBoardLogger(
                save_dir=run_dir, name="tensorboard", version="", purge_step=start_step or None
            )
        )
    if "wandb" in services:
        loggers.append(
            WandbLogger(
                name=run_dir.name,
                save_dir=run_dir,
                project=project,
                id=_wandb_id(run_dir / "wandb_id.txt"),
                resume="allow",
            )
        )
    if "mlflow" in services:
        loggers.append(_mlflow(run_dir, project))
    return loggers


def _wandb_id(file: Path) -> str:
    """Name under which W&B knows a run, the same when it is resumed."""
    if file.is_file():
        return file.read_text().strip()
    name = uuid.uuid4().hex[:12]
    if is_first_rank():
        write_atomic(file, lambda out: out.write(name.encode()))
    return name


def _mlflow(run_dir: Path, project: str) -> MLFlowLogger:
    file = run_dir / "mlflow_run_id.txt"
    made = MLFlowLogger(
        experiment_name=project,
        run_name=run_dir.name,
        tracking_uri=os.environ.get("MLFLOW_TRACKING_URI"),
        save_dir=str(run_dir / "mlruns"),
        run_id=file.read_text().strip() if file.is_file() else None,
    )
    if is_first_rank() and not file.is_file() and made.run_id is not None:
        name = made.run_id
        write_atomic(file, lambda out: out.write(name.encode()))
    return made


def show_picture(loggers: Sequence[Logger], name: str, picture: np.ndarray, *, step: int) -> None:
    """Show a picture wherever pictures can be shown; the first rank's work.

    Args:
        loggers: The run's.
        name: Groups pictures of several steps.
        picture: uint8, [H, W] or [H, W, 3].
        step: Index of the step, from 0.
    """
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            form = "HW" if picture.ndim == 2 else "HWC"
            logger.experiment.add_image(name, picture, step, dataformats=form)
        elif isinstance(logger, WandbLogger):
            logger.log_image(name, [picture], step=step)
        elif isinstance(logger, MLFlowLogger) and logger.run_id is not None:
            file = f"{name}/{step + 1:08d}.png"
            logger.experiment.log_image(logger.run_id, picture, file)


def show_histogram(loggers: Sequence[Logger], name: str, counts: Tensor, *, step: int) -> None:
    """Show how often each of several things occurs, in TensorBoard.

    Args:
        loggers: The run's.
        name: What is counted.
        counts: [K].
        step: Index of the step, from 0.
    """
    values = counts.cpu().double().numpy()
    edges = np.arange(len(values) + 1, dtype=float)
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            centres = edges[:-1] + 0.5
            logger.experiment.add_histogram_raw(
                name,
                min=0.0,
                max=float(len(values)),
                num=float(values.sum()),
                sum=float((centres * values).sum()),
                sum_squares=float((centres**2 * values).sum()),
                bucket_limits=edges[1:].tolist(),
                bucket_counts=values.tolist(),
                global_step=step,
            )
