"""Frozen protocols: k-NN and the linear probe on kept features, with some of the labels."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from spadnet.data.task_images import Preparation
from spadnet.data.tasks import SPLITS, TaskData
from spadnet.evaluate.features import Features
from spadnet.evaluate.intervals import Outcome
from spadnet.evaluate.knn import fit_knn
from spadnet.evaluate.patch_labels import (
    PatchLabels,
    class_shares,
    dice_per_case,
    pick_cells,
    read_labels,
)
from spadnet.evaluate.probe import Fitted, fit_probe
from spadnet.losses.scores import CHOOSING, score_targets
from spadnet.losses.targets import OutputKind

LINKS = {"multi_label": "sigmoid", "regression": "identity"}


class Targets(NamedTuple):
    """What features are to tell, by split.

    Attributes:
        wanted: Probabilities of classes, labels or values, [N, K]; shares of classes in cells.
        labels: Label maps, if it is those.
    """

    wanted: Mapping[str, Tensor]
    labels: Mapping[str, PatchLabels] | None = None


def read_targets(task: TaskData, features: Features, rule: Preparation) -> Targets:
    """Targets of all splits.

    Args:
        task: The task.
        features: Of its images; those of label maps tell the grids.
        rule: What was done to the images.
    """
    if task.kind == "segmentation":
        labels: dict[str, PatchLabels] = {
            split: read_labels(task, split, features, rule) for split in SPLITS
        }
        count = len(task.classes)
        return Targets(
            {split: class_shares(found, count) for split, found in labels.items()}, labels
        )
    wanted: dict[str, Tensor] = {}
    for split in SPLITS:
        rows = torch.tensor([cast(tuple[float, ...], c.target) for c in task.of(split)])
        if task.kind in ("classification", "ordinal"):
            rows = torch.nn.functional.one_hot(rows[:, 0].long(), len(task.classes)).float()
        wanted[split] = rows
    return Targets(wanted)


def run_frozen(
    protocol: str,
    task: TaskData,
    features: Features,
    targets: Targets,
    *,
    few: TaskData,
    seed: int,
    cells: int,
    tests: Sequence[Tensor] | None = None,
) -> tuple[list[Outcome], Fitted]:
    """Fit on some training cases, choose on validation, predict the test split once.

    Args:
        protocol: ``"knn"`` or ``"probe"``.
        task: All cases, which the features are of.
        features: Of the task.
        targets: Of the task.
        few: With the training cases to be used.
        seed: Decides which cells of label maps are learnt from.
        cells: Most of them.
        tests: Several versions of the features of the test split; its own by default.

    Returns:
        What came out of each version, and how it was fitted.
    """
    rows = training_rows(task, few, features, cells=cells, seed=seed)
    x, y = features.values["train"][rows].float(), targets.wanted["train"][rows]
    val = features.values["val"].float()
    others = [t.float() for t in ([features.values["test"]] if tests is None else tests)]
    score = _validation(task, targets)
    if protocol == "knn":
        fitted = fit_knn(x, y, val=val, others=others, score=score)
    else:
        link = LINKS.get(task.kind, "softmax")
        fit = fit_probe(x, y, link=link, val=val, score=score)
        fitted = Fitted([fit.predict(other) for other in others], fit.chosen, fit.num_trained)
    return [outcome_of(task, found, targets, "test") for found in fitted.prediction], fitted


def training_rows(
    task: TaskData, few: TaskData, features: Features, *, cells: int, seed: int
) -> Tensor:
    """Rows of the training features that belong to chosen cases."""
    keys = {case.key for case in few.of("train")}
    is_kept = torch.tensor([case.key in keys for case in task.of("train")])
    counts = features.grids["train"].prod(1).long()
    rows = is_kept.repeat_interleave(counts).nonzero()[:, 0]
    if task.kind != "segmentation":
        return rows
    return rows[pick_cells([len(rows)], cells, seed=seed)]


def outcome_of(task: TaskData, prediction: Tensor, targets: Targets, split: str) -> Outcome:
    """What predictions of a split say of each of its cases."""
    if targets.labels is not None:
        return Outcome(dice_per_case(prediction, targets.labels[split]).numpy(), None)
    truth = targets.wanted[split].numpy()
    if task.kind in ("classification", "ordinal"):
        truth = truth.argmax(1)[:, None].astype(np.float32)
    return Outcome(prediction.float().numpy(), truth)


def _validation(task: TaskData, targets: Targets) -> Callable[[Tensor], float]:
    def score(prediction: Tensor) -> float:
        found = outcome_of(task, prediction, targets, "val")
        if found.target is None:
            return float(found.values.mean())
        kind = cast(OutputKind, task.kind)
        return score_targets(kind, found.values, found.target)[CHOOSING[kind]]

    return score
