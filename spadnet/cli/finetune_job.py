"""A fine-tuning put together from its configuration: what learns, on what, and who judges it."""

import copy
import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

from torch import nn

from spadnet.cli.finetune_data import (
    build_steps,
    preparation,
    read_splits,
    seen_in,
    window_of,
)
from spadnet.cli.finetune_model import (
    Statistics,
    build_classifier,
    build_segmentor,
    check_mixup,
    first_head,
    in_chans,
    recipe_mode,
    recipe_optim,
    start_head,
    target_loss,
)
from spadnet.cli.finetune_scores import (
    PREDICTION_COLUMNS,
    Judge,
    judge_maps,
    judge_targets,
)
from spadnet.data.identity import identity_of_task
from spadnet.data.task_images import Preparation, TaskImage, check_maps
from spadnet.data.tasks import TaskData
from spadnet.evaluate.prediction import COLUMNS, check_names
from spadnet.evaluate.segmentation_scores import WINDOW_WAYS, WindowRule
from spadnet.inference.trained_range import TrainedRange
from spadnet.losses.scores import CHOOSING
from spadnet.losses.segmentation import SegmentationLoss
from spadnet.models.low_rank import merge_low_rank
from spadnet.train.datamodule import StepDataModule
from spadnet.train.finetune_task import FinetuneTask
from spadnet.train.keep_best import KeepBest
from spadnet.weights.contract import contract_of
from spadnet.weights.hub import save_pretrained

logger = logging.getLogger(__name__)


class Save(Protocol):
    """Writes a state of the model as a checkpoint folder; ``name`` is the folder's."""

    def __call__(
        self, model: nn.Module, step: int, scores: Mapping[str, float], name: str = "best"
    ) -> None: ...


class Job(NamedTuple):
    """A fine-tuning that is ready to run.

    Attributes:
        module: Lightning task.
        data: Its batches.
        task: What is predicted.
        rule: What is done to every image.
        statistics: Of values to be predicted.
        judge: Scores models on the validation and test splits.
        seen: Spacings and degrees of the training.
        identity: What is trained on, for the run folder.
        window: How the network is run over volumes; None but for label maps.
    """

    module: FinetuneTask
    data: StepDataModule
    task: TaskData
    rule: Preparation
    statistics: Statistics
    judge: Judge
    seen: TrainedRange
    identity: dict[str, Any]
    window: WindowRule | None


class _Goal(NamedTuple):
    """What a model is trained towards: its loss, who judges it, what was learnt of the values."""

    loss: nn.Module
    judge: Judge
    statistics: Statistics


def prepare_job(settings: Mapping[str, Any], task: TaskData, *, is_resumed: bool = False) -> Job:
    """Build the model, read the images and put the training together; nothing is written.

    Args:
        settings: Composed configuration as plain types.
        task: Cases, as :func:`spadnet.cli.finetune_data.find_task` finds them.
        is_resumed: Whether a checkpoint's weights take the place of the first ones.

    Raises:
        UsageError: If settings do not fit each other or the task.
        ValueError: If weights or images cannot be used (of images all are named), or a class has a
            name that tables of predictions need.
    """
    try:
        check_names(task.classes, kind=task.kind, columns=(*COLUMNS, *PREDICTION_COLUMNS))
    except ValueError as error:
        raise ValueError(f"{settings['data']['path']}: {error}") from error
    mode, optim = recipe_mode(settings), recipe_optim(settings)
    head = first_head(settings, task)
    if head == "probe" and settings["init"] is None:
        logger.warning("recipe.first_head=probe without init=: a probe of random features")
    is_map = task.kind == "segmentation"
    model = build_segmentor(settings, task) if is_map else build_classifier(settings, task)
    rule = preparation(settings["data"], in_chans=in_chans(model), is_map=is_map)
    stride = contract_of(cast(Any, model)).stride
    train, val = read_splits(
        task,
        ("train", "val"),
        rule=rule,
        workers=settings["data"]["read_workers"],
        check=("test",) if settings["test"] else (),
    )
    if is_map:
        check_maps(train, name=task.name, classes=task.classes)
    steps = build_steps(
        settings["data"],
        train,
        seed=settings["seed"],
        is_map=is_map,
        stride=stride,
        mixup=check_mixup(settings, task),
    )
    window = window_of(settings, model, steps) if is_map else None
    goal = (
        _map_goal(settings, task, rule, window, val)
        if window is not None
        else _target_goal(settings, task, rule, train, val)
    )
    if not is_resumed:
        start_head(model, settings, task, goal.statistics, train=train, val=val)
    module = FinetuneTask(
        model,
        goal.loss,
        max_steps=settings["trainer"]["max_steps"],
        optim=optim,
        freeze=mode in ("probe", "attention"),
    )
    data = StepDataModule(
        cast(Any, steps),
        max_steps=settings["trainer"]["max_steps"],
        num_workers=settings["data"]["num_workers"],
    )
    identity = identity_of_task(task, [*train, *val])
    seen = seen_in(settings["data"], train)
    return Job(module, data, task, rule, goal.statistics, goal.judge, seen, identity, window)


def keep_best(job: Job, settings: Mapping[str, Any], save: Save) -> KeepBest:
    """Callback that scores on validation and keeps the best state."""
    return KeepBest(
        job.judge.validate,
        save,
        chosen_by=CHOOSING[job.task.kind],
        every_steps=settings["validate"]["every_steps"],
        patience=settings["validate"]["patience"],
        from_start=first_head(settings, job.task) == "probe",
    )


def _map_goal(
    settings: Mapping[str, Any],
    task: TaskData,
    rule: Preparation,
    window: WindowRule,
    val: list[TaskImage],
) -> _Goal:
    loss = SegmentationLoss(num_classes=len(task.classes))
    return _Goal(loss, judge_maps(settings, task, rule, window, val), Statistics())


def _target_goal(
    settings: Mapping[str, Any],
    task: TaskData,
    rule: Preparation,
    train: list[TaskImage],
    val: list[TaskImage],
) -> _Goal:
    loss, statistics = target_loss(settings, task, train)
    return _Goal(loss, judge_targets(settings, task, rule, statistics, val), statistics)


def saver(job: Job, settings: Mapping[str, Any], folder: Path) -> Save:
    """What writes a state of the model into a run folder."""
    rule = job.rule

    def save(model: nn.Module, step: int, scores: Mapping[str, float], name: str = "best") -> None:
        save_pretrained(
            without_deep_supervision(merge_low_rank(model)),
            folder / name,
            name=settings["model"]["name"],
            training=facts_of(settings, job, step=step, scores=scores),
            intensity={"crop_to_foreground": rule.crop, "max_in_plane": rule.max_in_plane},
        )

    return save


def without_deep_supervision(model: nn.Module) -> nn.Module:
    """A copy that gives the logits of the finest level alone; other models as they are."""
    decoder: Any = getattr(model, "decoder", None)
    if decoder is None or not decoder.deep_supervision:
        return model
    model = copy.deepcopy(model)
    cast(Any, model).decoder.deep_supervision = False
    return model


def facts_of(
    settings: Mapping[str, Any], job: Job, *, step: int, scores: Mapping[str, float]
) -> dict[str, Any]:
    """What a checkpoint folder tells of a fine-tuned model; prediction needs ``task``."""
    task, rule = job.task, job.rule
    mean, std = job.statistics
    num_files = max(len(case.images) for case in task.cases)
    columns = list(settings["data"]["image_columns"])
    return {
        "stage": "finetune",
        "run": settings["name"],
        "steps": step,
        "seed": settings["seed"],
        "data": [task.name],
        **job.seen.facts(),
        "task": {
            "kind": task.kind,
            "classes": list(task.classes),
            "num_files": num_files,
            # Only a CSV is read by them; another description may have as many files or not.
            "image_columns": columns if len(columns) == num_files else [],
            "preparation": json.loads(json.dumps(rule._asdict())),
            "flips": list(settings["validate"]["flips"]),
            "crop": settings["data"]["crop"] if task.kind == "segmentation" else None,
            "overlap": settings["validate"]["overlap"],
            **{way: getattr(job.window, way) for way in WINDOW_WAYS if job.window is not None},
            "value_mean": None if mean is None else mean.tolist(),
            "value_std": None if std is None else std.tolist(),
        },
        "validation": {name: value for name, value in scores.items() if math.isfinite(value)},
    }
