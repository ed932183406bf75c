"""One fine-tuned point of ``spadnet evaluate``: train on some labels, score the test split once."""

import copy
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import nn

from spadnet.cli.evaluate_tasks import Subject, finetune_config
from spadnet.cli.finetune import with_length
from spadnet.cli.finetune_data import build_steps, preparation, read_split, window_of
from spadnet.cli.finetune_job import without_deep_supervision
from spadnet.cli.finetune_model import (
    Statistics,
    check_mixup,
    first_head,
    in_chans,
    recipe_mode,
    recipe_optim,
    start_head,
    target_loss,
)
from spadnet.cli.training import plain, record_and_fit
from spadnet.data.identity import identity_of_task
from spadnet.data.task_images import CaseReader, Preparation, TaskImage
from spadnet.data.tasks import Case, TaskData
from spadnet.evaluate.intervals import Outcome
from spadnet.evaluate.segmentation_scores import WindowRule, mean_dice, segment_cases
from spadnet.evaluate.task_scores import predict_targets
from spadnet.losses.scores import CHOOSING
from spadnet.losses.segmentation import SegmentationLoss
from spadnet.losses.targets import OutputKind
from spadnet.models.low_rank import merge_low_rank
from spadnet.train.datamodule import StepDataModule
from spadnet.train.finetune_task import FinetuneTask
from spadnet.train.keep_best import KeepBest
from spadnet.train.precision import choose_precision
from spadnet.weights.contract import contract_of

_QUIET = (
    "logger.tensorboard=false",
    "logger.csv=false",
    "callbacks.show_progress=false",
    "resume=null",
)


class Cases(NamedTuple):
    """Images of a task in memory; label maps of the test split are read from their files."""

    train: list[TaskImage]
    val: list[TaskImage]
    test: list[TaskImage]


class Trained(NamedTuple):
    """What a training gave.

    Attributes:
        model: The state that is best on validation.
        step: When that was.
        score: What validation said of it; more is better.
        num_trained: Trained parameters.
        statistics: Of values to be predicted.
        rule: What was done to the images.
        window: How the network is run over volumes; None for classes and values.
        num_classes: Classes of the task.
    """

    model: nn.Module
    step: int
    score: float
    num_trained: int
    statistics: Statistics
    rule: Preparation
    window: WindowRule | None
    num_classes: int


def training_rule(subject: Subject, channels: int) -> Preparation:
    """What is done to images that a network is trained on."""
    is_map = subject.task.kind == "segmentation"
    return preparation(subject.settings["data"], in_chans=channels, is_map=is_map)


def read_all(subject: Subject, channels: int, *, test_maps: bool = False) -> Cases:
    """Read the images of a task as its trainings take them.

    Args:
        subject: The task.
        channels: Of the network.
        test_maps: Whether to read the test split of label maps too.
    """
    rule = training_rule(subject, channels)
    workers = subject.settings["data"]["read_workers"]
    is_map = subject.task.kind == "segmentation"
    train, val = (
        read_split(subject.task, split, rule=rule, workers=workers) for split in ("train", "val")
    )
    skips = is_map and not test_maps
    test = [] if skips else read_split(subject.task, "test", rule=rule, workers=workers)
    return Cases(train, val, test)


def settings_of(subject: Subject, *, seed: int, extra: Sequence[str] = ()) -> dict[str, Any]:
    """Settings of one training as plain types."""
    return plain(finetune_config([*subject.arguments, *extra, f"seed={seed}"]))


def train_best(
    model: nn.Module,
    task: TaskData,
    subject: Subject,
    cases: Cases,
    *,
    seed: int,
    folder: Path,
    extra: Sequence[str] = (),
    wrap: Callable[[list[TaskImage]], Sequence[TaskImage]] = lambda images: images,
) -> Trained:
    """Train a network and keep its best state on validation, in memory.

    Args:
        model: With a fresh head.
        task: With the training cases to be used.
        subject: Settings of the training.
        cases: Images; those of the task's training cases are picked.
        seed: Of the training.
        folder: Scratch folder; removed in the end.
        extra: Further settings.
        wrap: What is done to the list of training images.
    """
    shutil.rmtree(folder, ignore_errors=True)
    config = finetune_config([*subject.arguments, *extra, *_QUIET, f"seed={seed}", f"out={folder}"])
    config = with_length(config, num_cases=len(task.of("train")))
    settings = plain(config)
    choose_precision(config.trainer.precision)
    is_map = task.kind == "segmentation"
    rule = preparation(settings["data"], in_chans=in_chans(model), is_map=is_map)
    keys = {case.key for case in task.of("train")}
    train = [image for image in cases.train if image.key in keys]
    stride = contract_of(cast(Any, model)).stride
    steps = build_steps(
        settings["data"],
        wrap(train),
        seed=seed,
        is_map=is_map,
        stride=stride,
        mixup=check_mixup(settings, task),
    )
    window, statistics, loss = None, Statistics(), cast(nn.Module, None)
    if is_map:
        window = window_of(settings, model, steps)
        loss = SegmentationLoss(num_classes=len(task.classes))
    else:
        loss, statistics = target_loss(settings, task, train)
    start_head(model, settings, task, statistics, train=train, val=cases.val)
    found: dict[str, Any] = {}

    def keep(state: nn.Module, step: int, scores: Mapping[str, float]) -> None:
        found["model"] = copy.deepcopy(state).eval()
        found["step"] = step

    def score(state: nn.Module) -> dict[str, float]:
        if window is not None:
            return mean_dice(state, cases.val, rule=window, classes=task.classes)
        kind = cast(OutputKind, task.kind)
        flips = settings["validate"]["flips"]
        predicted = predict_targets(
            state, cases.val, kind=kind, flips=flips, **statistics._asdict()
        )
        return predicted.scores(kind)

    best = KeepBest(
        score,
        keep,
        chosen_by=CHOOSING[task.kind],
        every_steps=settings["validate"]["every_steps"],
        patience=settings["validate"]["patience"],
        from_start=first_head(settings, task, model=model) == "probe",
    )
    module = FinetuneTask(
        model,
        loss,
        max_steps=settings["trainer"]["max_steps"],
        optim=recipe_optim(settings),
        freeze=recipe_mode(settings) in ("probe", "attention"),
    )
    num_trained = sum(p.numel() for p in module.model.parameters() if p.requires_grad)
    data = StepDataModule(
        cast(Any, steps),
        max_steps=settings["trainer"]["max_steps"],
        num_workers=settings["data"]["num_workers"],
    )
    result = record_and_fit(
        module,
        data,
        config,
        argv=(),
        verb="evaluate",
        identity=identity_of_task(task, [*train, *cases.val]),
        callbacks=[best],
    )
    shutil.rmtree(folder, ignore_errors=True)
    if result.stopped_by is not None:
        raise KeyboardInterrupt
    state = without_deep_supervision(merge_low_rank(found["model"])).eval()
    return Trained(
        state,
        found["step"],
        best.best[CHOOSING[task.kind]],
        num_trained,
        statistics,
        rule,
        window,
        len(task.classes),
    )


def test_outcome(
    trained: Trained, task: TaskData, subject: Subject, test: Sequence[TaskImage]
) -> Outcome:
    """Predict the test split; label maps are scored on the grids of their files."""
    if trained.window is None:
        found = predict_targets(
            trained.model,
            test,
            kind=cast(OutputKind, task.kind),
            flips=subject.settings["validate"]["flips"],
            **trained.statistics._asdict(),
        )
        return Outcome(found.values, found.target)
    reader = CaseReader(trained.rule, num_classes=len(task.classes))
    return Outcome(dice_rows(trained, task.of("test"), reader, task.classes), None)


@torch.no_grad()
def dice_rows(
    trained: Trained, cases: Sequence[Case], reader: CaseReader, classes: Sequence[str]
) -> np.ndarray:
    """Dice of each class but the background of each case, [N, K - 1]."""
    assert trained.window is not None
    segmented = segment_cases(
        trained.model,
        cases,
        reader=reader,
        rule=trained.window,
        classes=classes,
        surfaces=False,
    )
    return np.array([[score.dice for score in one.scores] for one in segmented])
