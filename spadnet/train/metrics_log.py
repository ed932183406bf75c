"""Write metrics to TensorBoard and to one CSV file, both of which go on where a run resumes."""

import csv
import io
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor

from spadnet.ranks import num_ranks
from spadnet.train.checkpoint import write_atomic
from spadnet.train.launch import is_first_rank
from spadnet.train.per_degree import is_absent

CSV_NAME = "metrics.csv"
MEASURED = ("speed/", "memory/")
"""What the names of metrics begin with that are others each time a training runs."""


def has_row(trainer: Trainer, step: int) -> bool:
    """Whether what a step logs is written or shown; logging costs what a layer does.

    Args:
        trainer: Of the training.
        step: Number of the step, from 1.
    """
    is_last = step >= trainer.num_training_batches
    return is_last or step % int(cast(Any, trainer).log_every_n_steps) == 0


def mean_over_ranks(
    metrics: Mapping[str, Tensor | float], *, device: torch.device
) -> dict[str, Tensor | float]:
    """Mean of each metric over ranks; all of them cross ranks at once.

    Args:
        metrics: Scalars by name, the same names on all ranks.
        device: Of this rank.
    """
    if num_ranks() == 1:
        return dict(metrics)
    means = torch.stack([torch.as_tensor(v, device=device).float() for v in metrics.values()])
    dist.all_reduce(means)
    return dict(zip(metrics, (means / num_ranks()).unbind(), strict=True))


class CsvLog(Logger):
    """One row whenever something is logged; a resumed run drops rows past its start and appends.

    What is measured apart from the training's own metrics has rows of its own with the same step.

    Lightning's own CSV logger deletes the rows of a run that it continues.
    """

    def __init__(self, path: Path, *, start_step: int = 0) -> None:
        """Open the log; the first rank writes it.

        Args:
            path: CSV file, made when the first row is written.
            start_step: Number of steps already done; later rows belong to steps done again.
        """
        super().__init__()
        self.path = path
        self._columns: list[str] = ["step"]
        if path.is_file() and is_first_rank():
            columns, rows = _read(path)
            self._columns = columns or self._columns
            self._rewrite([row for row in rows if _number(row.get("step")) <= start_step])

    @property
    def name(self) -> str:
        """Name of the logger."""
        return "csv"

    @property
    def version(self) -> str:
        """There is one log per run."""
        return ""

    @rank_zero_only
    def log_hyperparams(
        self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any
    ) -> None:
        """Do nothing: the run folder holds the configuration."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append a row.

        Args:
            metrics: Values by name.
            step: Index of the step, from 0; the row counts finished steps.
        """
        row: dict[str, Any] = {
            name: value
            for name, value in metrics.items()
            if name != "epoch" and not is_absent(name, value)
        }
        if not row:
            return
        row["step"] = (step or 0) + 1
        new = sorted(set(row) - set(self._columns))
        if new:
            _, rows = _read(self.path)
            self._columns += new
            self._rewrite([*rows, row])
            return
        try:
            with open(self.path, "a", newline="") as file:
                csv.DictWriter(file, self._columns).writerow(row)
        except OSError as error:  # a full disk shows on closing, where the file is not named
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    @rank_zero_only
    def complete(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Append a row unless it is there.

        Args:
            metrics: Values by name.
            step: Index of the step, from 0.
        """
        names = [name for name, value in metrics.items() if not is_absent(name, value)]
        for row in read_rows(self.path):
            if row.get("step") == str(step + 1) and all(row.get(name) for name in names):
                return
        self.log_metrics(metrics, step)

    def _rewrite(self, rows: list[dict[str, Any]]) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, self._columns)
        writer.writeheader()
        writer.writerows(rows)
        write_atomic(self.path, lambda file: file.write(text.getvalue().encode()))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """One row per step of a metrics file, values as text; no rows where there is no file."""
    steps: dict[str | None, dict[str, Any]] = {}
    for row in _read(path)[1]:
        kept = steps.setdefault(row.get("step"), row)
        kept.update({name: value for name, value in row.items() if value})
    return list(steps.values())


def _read(path: Path) -> tuple[list[str], list[dict[str, Any]]]:
    """Columns and rows of a metrics file; a last row that was cut off by a kill is left out."""
    if not path.is_file():
        return [], []
    text = path.read_bytes().decode("utf-8", "replace")
    whole = text[: text.rfind("\n") + 1].replace("\0", "")
    reader = csv.DictReader(io.StringIO(whole, newline=""))
    rows = list(reader)
    return list(reader.fieldnames or []), rows


def _number(text: str | None) -> float:
    try:
        return float(text or "")
    except ValueError:
        return float("inf")  # no number: a row that something else has damaged


def complete_logs(loggers: Sequence[Logger], row: Mapping[str, float], *, step: int) -> None:
    """Log the row of a step that was saved, and then killed before it was logged.

    Args:
        loggers: Of the run that goes on.
        row: What the step logs; empty where it logs nothing.
        step: Index of the step, from 0.
    """
    for log in loggers if row else ():
        if isinstance(log, CsvLog):
            log.complete(row, step=step)
        else:
            log.log_metrics(dict(row), step)
