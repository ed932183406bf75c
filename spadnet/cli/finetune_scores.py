"""How a fine-tuned model is scored: on validation while it learns, on the test split at the end."""

import csv
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from torch import nn

from spadnet.cli.finetune_data import read_split
from spadnet.cli.finetune_model import Statistics
from spadnet.data.atomic import write_atomic
from spadnet.data.io import write_like
from spadnet.data.task_images import CaseReader, Preparation, TaskImage
from spadnet.data.tasks import TaskData
from spadnet.evaluate.segmentation_scores import CaseScore, WindowRule, mean_dice, segment_cases
from spadnet.evaluate.task_scores import Predictions, predict_targets
from spadnet.losses.targets import OutputKind

PREDICTION_COLUMNS = ("case", "target")
"""Columns of the test split's ``predictions.csv`` beside those that have the names of classes."""


class Judge(NamedTuple):
    """Scores of a model.

    Attributes:
        validate: Scores on validation.
        test: Scores on the test split; what it found for each case is written into a folder.
    """

    validate: Callable[[nn.Module], dict[str, float]]
    test: Callable[[nn.Module, Path], dict[str, float]]


def judge_targets(
    settings: Mapping[str, Any],
    task: TaskData,
    rule: Preparation,
    statistics: Statistics,
    val: Sequence[TaskImage],
) -> Judge:
    """Judge of classes, labels or values."""
    kind = cast(OutputKind, task.kind)

    def predict(model: nn.Module, images: Sequence[TaskImage]) -> Predictions:
        flips = settings["validate"]["flips"]
        return predict_targets(model, images, kind=kind, flips=flips, **statistics._asdict())

    def test(model: nn.Module, folder: Path) -> dict[str, float]:
        images = read_split(task, "test", rule=rule, workers=settings["data"]["read_workers"])
        found = predict(model, images)
        write_predictions(folder / "predictions.csv", found, task)
        return found.scores(kind)

    return Judge(lambda model: predict(model, val).scores(kind), test)


def judge_maps(
    settings: Mapping[str, Any],
    task: TaskData,
    rule: Preparation,
    window: WindowRule,
    val: Sequence[TaskImage],
) -> Judge:
    """Judge of label maps: the mean of the classes' Dice; cases count alike."""

    def test(model: nn.Module, folder: Path) -> dict[str, float]:
        reader = CaseReader(rule, num_classes=len(task.classes))
        rows: list[CaseScore] = []
        for found in segment_cases(
            model, task.of("test"), reader=reader, rule=window, classes=task.classes
        ):
            rows += found.scores
            mask = folder / "masks" / f"{found.case.key}.nii.gz"
            mask.parent.mkdir(parents=True, exist_ok=True)
            write_like(found.mask, found.image, mask)
        write_cases(folder / "cases.csv", rows)
        return mean_scores(rows, task.classes[1:])

    return Judge(lambda model: mean_dice(model, val, rule=window, classes=task.classes), test)


def mean_scores(rows: Sequence[CaseScore], names: Sequence[str]) -> dict[str, float]:
    """Mean over cases of each class's scores, and the mean of these over classes."""
    scores: dict[str, float] = {}
    for measure in ("dice", "nsd", "hd95"):
        means = {}
        for name in names:
            values = [getattr(row, measure) for row in rows if row.label == name]
            known = [value for value in values if not math.isnan(value)]
            if known:
                means[name] = float(np.mean(known))
        if means:
            scores[measure] = float(np.mean(list(means.values())))
            scores |= {f"{measure}_{name}": value for name, value in means.items()}
    return scores


def write_cases(path: Path, rows: Sequence[CaseScore]) -> None:
    """One row per class of each case; a distance that is not defined is left empty."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(CaseScore._fields)
    for row in rows:
        values = ("" if math.isnan(value) else f"{value:.6g}" for value in row[2:])
        writer.writerow([row.case, row.label, *values])
    write_atomic(path, text.getvalue().encode())


def write_predictions(path: Path, found: Predictions, task: TaskData) -> None:
    """One row per case: its target, and the probability of each class or each value."""
    text = io.StringIO()
    writer = csv.writer(text)
    case, target = PREDICTION_COLUMNS
    targets = [target] if found.target.shape[1] == 1 else [f"{target}_{c}" for c in task.classes]
    writer.writerow([case, *targets, *task.classes])
    for key, target, values in zip(found.keys, found.target, found.values, strict=True):
        writer.writerow([key, *(f"{v:g}" for v in target), *(f"{v:.6g}" for v in values)])
    write_atomic(path, text.getvalue().encode())


def write_results(
    path: Path,
    settings: Mapping[str, Any],
    task: TaskData,
    scores: Mapping[str, float],
    *,
    seconds: float,
) -> None:
    """Scores on the test split as a list of records."""
    shared = {
        "task": task.name,
        "model": settings["model"]["name"],
        "protocol": f"finetune-{settings['recipe']['mode']}",
        "share": settings["data"]["train_share"],
        "seed": settings["seed"],
    }
    records = [
        {**shared, "metric": name, "value": value, "seconds": round(seconds, 1)}
        for name, value in scores.items()
        if math.isfinite(value)  # a split of one class has no AUC
    ]
    write_atomic(path, (json.dumps(records, indent=2) + "\n").encode())
