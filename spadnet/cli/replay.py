"""``spadnet replay``: one step of a training again, and where it ceased to be finite."""

import importlib
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spadnet.cli.export_weights import read_settings
from spadnet.cli.training import Training
from spadnet.cli.usage import UsageError
from spadnet.train.metrics_log import CSV_NAME, read_rows
from spadnet.train.replay import Replayed, replay

STAGES = {
    "tokenizer": "spadnet.cli.pretrain_tokenizer",
    "mim": "spadnet.cli.pretrain_mim",
    "finetune": "spadnet.cli.finetune",
}
"""Verb of each stage; its ``rebuild`` makes a training from a run's configuration."""

_SHOWN = 8


def run(argv: Sequence[str]) -> int:
    """Print what the step did."""
    if len(argv) != 2 or not argv[1].isdecimal():
        raise UsageError(f"expected RUN STEP, got {' '.join(argv) or 'nothing'}")
    folder, step = Path(argv[0]).expanduser(), int(argv[1])
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such run")
    settings = read_settings(folder)
    stage, trainer = settings.get("stage"), settings["trainer"]
    if stage not in STAGES:
        raise ValueError(f"{folder}: of stage {stage!r}, which cannot be replayed")
    training: Training = importlib.import_module(STAGES[stage]).rebuild(settings)
    found = replay(
        training.task,
        training.data,
        folder,
        step,
        precision=trainer["precision"],
        accelerator=trainer["accelerator"],
        threads=trainer["threads"],
        deterministic=trainer.get("deterministic", False),
        skip_non_finite=trainer.get("skip_non_finite", 0),
        seed=settings["seed"],
    )
    sys.stdout.write("\n".join(describe(found, logged=logged_row(folder, step))) + "\n")
    return 0


def logged_row(folder: Path, step: int) -> dict[str, Any]:
    """What the run has logged of a step; nothing if it has not."""
    return next((r for r in read_rows(folder / CSV_NAME) if r.get("step") == str(step)), {})


def describe(found: Replayed, *, logged: dict[str, Any]) -> list[str]:
    """Lines about a step that was done again.

    Args:
        found: What it did.
        logged: The row that the run has logged, values as text.
    """
    begin = f"the state after step {found.start}" if found.start else "the start"
    lines = [f"step {found.step}, computed from {begin}"]
    if found.is_same_batch is not None:
        same = "the same" if found.is_same_batch else "NOT what the data gives now"
        lines.append(f"batch: as it was kept, which is {same}")
    count = len(found.batch)
    for number, loss in enumerate(found.losses):
        degree, keys = found.batch[number % count]
        turn = "" if number < count else " of the discriminator"
        more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
        lines.append(
            f"micro-batch {number % count}: degree {degree}, loss{turn} {loss:.9g}, "
            f"{', '.join(keys[:_SHOWN])}{more}"
        )
    for name, value in sorted(found.metrics.items()):
        if name.endswith("gradient_norm"):
            lines.append(f"{name}: {value:.9g}")
    if logged.get("train/loss") and "train/loss" in found.metrics:
        then, now = float(logged["train/loss"]), found.metrics["train/loss"]
        is_same = then == now or (math.isnan(then) and math.isnan(now))
        lines.append(f"train/loss: {now:.9g}, {'as' if is_same else f'but {then:.9g}'} in the log")
    if found.findings:
        return [*lines, "not finite:", *(f"  {finding}" for finding in found.findings)]
    return [*lines, "all finite"]
