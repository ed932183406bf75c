"""``spadnet finetune``: a model on labelled images."""

import copy
import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from torch import nn

from spadnet.cli.configure import configure
from spadnet.cli.finetune_data import build_steps, find_task, preparation, read_split
from spadnet.cli.finetune_model import (
    Statistics,
    build_classifier,
    build_segmentor,
    recipe_mode,
    recipe_optim,
    target_loss,
)
from spadnet.cli.finetune_scores import Judge, judge_maps, judge_targets, write_results
from spadnet.cli.training import Training, plain, record_and_fit, run_dir, stopped
from spadnet.cli.usage import UsageError
from spadnet.data.identity import identity_of_task
from spadnet.data.task_images import Preparation
from spadnet.data.tasks import TaskData
from spadnet.evaluate.segmentation_scores import WindowRule
from spadnet.losses.scores import CHOOSING
from spadnet.losses.segmentation import SegmentationLoss
from spadnet.models.low_rank import merge_low_rank
from spadnet.train.datamodule import StepDataModule
from spadnet.train.finetune_task import FinetuneTask
from spadnet.train.keep_best import KeepBest
from spadnet.train.launch import find_launch
from spadnet.train.meters import Meters
from spadnet.train.precision import choose_precision
from spadnet.train.run_folder import RESULTS_FILE, checkpoint_to_resume
from spadnet.weights.contract import contract_of
from spadnet.weights.hub import load_pretrained, save_pretrained

logger = logging.getLogger(__name__)

VERB = "finetune"


class Prepared(NamedTuple):
    """A fine-tuning that can begin.

    Attributes:
        module: What is trained.
        data: Its batches.
        task: What is predicted.
        rule: What is done to every image.
        statistics: Of values to be predicted.
        judge: Scores models on the validation and test splits.
        identity: What is trained on, for the run folder.
    """

    module: FinetuneTask
    data: StepDataModule
    task: TaskData
    rule: Preparation
    statistics: Statistics
    judge: Judge
    identity: dict[str, Any]


def run(argv: Sequence[str]) -> int:
    """Train on labelled images; write the best and the last state, and the scores of the best."""
    config = configure("finetune", argv)
    if config is None:
        return 0
    settings = plain(config)
    folder = run_dir(config)
    checkpoint_to_resume(folder, config.resume)
    choose_precision(config.trainer.precision)
    if config.trainer.devices != 1 or find_launch() is not None:
        raise UsageError("fine-tuning on several devices is not supported yet; trainer.devices=1")
    ready = prepare(settings)
    task, rule = ready.task, ready.rule

    def save(found: nn.Module, step: int, scores: Mapping[str, float], name: str = "best") -> None:
        facts = facts_of(settings, task, rule, ready.statistics, step=step, scores=scores)
        save_pretrained(
            without_deep_supervision(merge_low_rank(found)),
            folder / name,
            name=settings["model"]["name"],
            training=facts,
            intensity={"crop_to_foreground": rule.crop, "max_in_plane": rule.max_in_plane},
        )

    best = KeepBest(
        ready.judge.validate,
        save,
        chosen_by=CHOOSING[task.kind],
        every_steps=settings["validate"]["every_steps"],
        patience=settings["validate"]["patience"],
    )
    result = record_and_fit(
        ready.module,
        ready.data,
        config,
        argv=argv,
        verb=VERB,
        identity=ready.identity,
        callbacks=[Meters(folder), best],
    )
    code = stopped(result, config, argv=argv, verb=VERB)
    if code is not None:
        return code
    save(ready.module.final_model, result.step, {}, "last")
    logger.info("best state, after step %d, written to %s", best.best_step, folder / "best")
    if settings["test"] and task.of("test"):
        score_test(ready.judge, settings, task, folder, seconds=result.seconds)
    return 0


def prepare(settings: Mapping[str, Any]) -> Prepared:
    """Read the images; build the model, its training and what judges it.

    Args:
        settings: Composed configuration as plain types; its seed decides the first weights.
    """
    mode, optim = recipe_mode(settings), recipe_optim(settings)
    task = find_task(settings)
    is_map = task.kind == "segmentation"
    model = build_segmentor(settings, task) if is_map else build_classifier(settings, task)
    rule = preparation(settings["data"], in_chans=in_chans(model), is_map=is_map)
    workers = settings["data"]["read_workers"]
    train = read_split(task, "train", rule=rule, workers=workers)
    val = read_split(task, "val", rule=rule, workers=workers)
    stride = contract_of(cast(Any, model)).stride
    steps = build_steps(
        settings["data"], train, seed=settings["seed"], is_map=is_map, stride=stride
    )
    statistics = Statistics()
    loss: nn.Module
    if is_map:
        assert steps.crop is not None
        window = WindowRule(
            steps.crop,
            stride,
            overlap=settings["validate"]["overlap"],
            flips=tuple(settings["validate"]["flips"]),
        )
        loss = SegmentationLoss(num_classes=len(task.classes))
        judge = judge_maps(settings, task, rule, window, val)
    else:
        loss, statistics = target_loss(settings, task, train)
        judge = judge_targets(settings, task, rule, statistics, val)
    module = FinetuneTask(
        model,
        loss,
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
    return Prepared(module, data, task, rule, statistics, judge, identity)


def rebuild(settings: Mapping[str, Any]) -> Training:
    """A training as its configuration says, to do a step of it again."""
    ready = prepare(settings)
    return Training(ready.module, ready.data)


def score_test(
    judge: Judge, settings: Mapping[str, Any], task: TaskData, folder: Path, *, seconds: float
) -> None:
    """Score the best state on the test split and write what came out."""
    begin = time.monotonic()
    scores = judge.test(load_pretrained(folder / "best"), folder)
    seconds += time.monotonic() - begin
    write_results(folder / RESULTS_FILE, settings, task, scores, seconds=seconds)
    logger.info("test: %s", ", ".join(f"{name} {value:.4f}" for name, value in scores.items()))


def without_deep_supervision(model: nn.Module) -> nn.Module:
    """A copy that gives the logits of the finest level alone; other models as they are."""
    decoder: Any = getattr(model, "decoder", None)
    if decoder is None or not decoder.deep_supervision:
        return model
    model = copy.deepcopy(model)
    cast(Any, model).decoder.deep_supervision = False
    return model


def in_chans(model: nn.Module) -> int:
    """Channels that a model takes."""
    return int(cast(Any, getattr(model, "vit", model)).in_chans)


def facts_of(
    settings: Mapping[str, Any],
    task: TaskData,
    rule: Preparation,
    statistics: Statistics,
    *,
    step: int,
    scores: Mapping[str, float],
) -> dict[str, Any]:
    """What a checkpoint folder tells of a fine-tuned model; prediction needs ``task``."""
    mean, std = statistics
    return {
        "stage": "finetune",
        "run": settings["name"],
        "steps": step,
        "seed": settings["seed"],
        "data": [task.name],
        "task": {
            "kind": task.kind,
            "classes": list(task.classes),
            "preparation": json.loads(json.dumps(rule._asdict())),
            "flips": list(settings["validate"]["flips"]),
            "crop": settings["data"]["crop"] if task.kind == "segmentation" else None,
            "overlap": settings["validate"]["overlap"],
            "value_mean": None if mean is None else mean.tolist(),
            "value_std": None if std is None else std.tolist(),
        },
        "validation": {name: value for name, value in scores.items() if math.isfinite(value)},
    }
