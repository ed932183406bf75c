"""The labelled images of a fine-tuning from a ``data`` section."""

import logging
import math
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from torch import nn

from spadnet.cli.training import call
from spadnet.cli.usage import UsageError
from spadnet.data.augment import IntensityAugment
from spadnet.data.task_forms import Columns, read_task
from spadnet.data.task_images import CaseReader, Preparation, TaskImage, read_cases
from spadnet.data.task_steps import TaskAugment, TaskSteps
from spadnet.data.tasks import Split, TaskData, check_task, hold_out, known_kind, subsample
from spadnet.data.warp import WarpRange
from spadnet.evaluate.segmentation_scores import WindowRule, window_rule
from spadnet.inference.trained_range import TrainedRange
from spadnet.spacing import MAX_DEGREE

logger = logging.getLogger(__name__)


def find_task(settings: Mapping[str, Any]) -> TaskData:
    """Read the description of the cases, split and check them.

    Args:
        settings: Composed configuration as plain types.
    """
    section = settings["data"]
    if section["source"] != "labelled":
        raise UsageError("data: fine-tuning takes labelled images; leave data= as it is")
    if section["path"] is None:
        raise UsageError(
            "data.path=FILE|FOLDER is missing: an npz of MedMNIST, a CSV, a JSON list or a folder"
        )
    task = read_task(
        str(section["path"]),
        kind=None if section["task"] is None else known_kind(str(section["task"])),
        classes=section["classes"],
        columns=Columns(tuple(section["image_columns"]), tuple(section["label_columns"])),
        patient_pattern=section["patient_pattern"],
        fold=section["fold"],
    )
    seed = settings["seed"]
    cases = hold_out(task.cases, share=section["val_share"], seed=seed)
    if cases != task.cases:
        num_held = sum(case.split == "val" for case in cases)
        logger.info("no cases for validation: %d of those for training are held out", num_held)
    if settings["test"] and not task.of("test"):
        logger.warning(
            "%s: the split 'test' is empty: the best state will not be scored", task.name
        )
    return check_task(
        task._replace(cases=subsample(cases, share=section["train_share"], seed=seed))
    )


def preparation(section: Mapping[str, Any], *, in_chans: int, is_map: bool) -> Preparation:
    """What is done to every image."""
    if is_map and section["size"] is not None:
        raise UsageError("data.size is for classes and values; data.spacing resamples label maps")
    degree = section["degree"]
    if degree is not None and degree not in range(MAX_DEGREE + 1):
        raise UsageError(f"data.degree must be 0 to {MAX_DEGREE}, got {degree}")
    window = _numbers(section, "window", 2)
    if window is not None and not window[0] < window[1]:
        raise UsageError(f"data.window must rise, got {section['window']}")
    return Preparation(
        in_chans=in_chans,
        crop=section["cut_to_body"],
        window=window,
        size=_numbers(section, "size", 3, low=1, whole=True),
        spacing=_numbers(section, "spacing", 3, low=0),
        degree=degree,
    )


def read_split(
    task: TaskData, split: Split, *, rule: Preparation, workers: int = 0
) -> list[TaskImage]:
    """Read all cases of a split; see :func:`read_splits`."""
    (images,) = read_splits(task, (split,), rule=rule, workers=workers)
    return images


def read_splits(
    task: TaskData,
    splits: Sequence[Split],
    *,
    rule: Preparation,
    workers: int = 0,
    check: Sequence[Split] = (),
) -> list[list[TaskImage]]:
    """Read all cases of some splits; what cannot be used in any of them is told together.

    Args:
        task: The task.
        splits: Which.
        rule: What is done to every image.
        workers: Threads that read.
        check: Splits that are read for their faults alone and forgotten: those of the test split
            should not show after the training.
    """
    reader = CaseReader(rule, num_classes=len(task.classes))
    cases = [case for split in (*splits, *check) for case in task.of(split)]
    for split in (*splits, *check):
        of_split = task.of(split)
        path = f" ({of_split[0].images[0]}, ...)" if of_split else ""
        logger.info("reading %d cases for %s%s", len(of_split), split, path)
    images = read_cases(cases, reader, workers=workers)
    found = [list(islice(images, len(task.of(split)))) for split in splits]
    for _ in images:
        pass
    return found


def seen_in(section: Mapping[str, Any], images: Sequence[TaskImage]) -> TrainedRange:
    """Spacings and degrees of a training's images, those of slices that are averaged included.

    Args:
        section: ``data`` of the configuration.
        images: As the network takes them.
    """
    degrees = {image.degree for image in images}
    if 0 in degrees and section["thick_slices"]:
        degrees |= {1, 2}
    # Where all are stretched to one size, millimetres mean nothing to the network.
    spacings = [] if section["size"] is not None else [image.spacing for image in images]
    return TrainedRange.over(spacings, sorted(degrees))


def build_steps(
    section: Mapping[str, Any],
    images: Sequence[TaskImage],
    *,
    seed: int,
    is_map: bool,
    stride: int,
    mixup: float = 0.0,
) -> TaskSteps:
    """Batches of the training.

    Args:
        section: The ``data`` section as plain types.
        images: Training cases.
        seed: Source of every choice.
        is_map: Whether targets are label maps.
        stride: In-plane stride of the network.
        mixup: See :class:`spadnet.data.task_steps.TaskAugment`.
    """
    if is_map and section["crop"] is None:
        raise UsageError("data.crop=[z,y,x] is missing: the size of a training crop in voxels")
    ranges = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in section["warp"].items()
    }
    augment = TaskAugment(
        warp=call(WarpRange, ranges, where="data.warp"),
        intensity=IntensityAugment() if section["intensity"] else None,
        thick_prob=_share(section, "thick_slices"),
        foreground=_share(section, "foreground"),
        mixup=mixup,
    )
    return TaskSteps(
        images,
        batch_size=section["batch_size"],
        micro_batch=section["micro_batch"],
        seed=seed,
        crop=_numbers(section, "crop", 3, low=1, whole=True) if is_map else None,
        stride=stride,
        augment=augment,
    )


def window_of(settings: Mapping[str, Any], model: nn.Module, steps: TaskSteps) -> WindowRule:
    """How the network of a segmentation is run over volumes."""
    assert steps.crop is not None
    rules = settings["validate"]
    thins = steps.augment.thick_prob > 0
    if thins:  # slices that are thick already have labels as thick; those of 2D images stay
        degrees = {case.degree for case in steps.images}
        thins = 0 in degrees and degrees <= {0, MAX_DEGREE}
    return window_rule(
        model,
        steps.crop,
        stride=steps.stride,
        overlap=rules["overlap"],
        flips=rules["flips"],
        thick_slices=thins,
    )


def _share(section: Mapping[str, Any], key: str) -> float:
    """A number from 0 to 1."""
    if not 0 <= section[key] <= 1:
        raise UsageError(f"data.{key} must lie in [0, 1], got {section[key]}")
    return float(section[key])


def _numbers(
    section: Mapping[str, Any],
    key: str,
    count: int,
    *,
    low: float = -math.inf,
    whole: bool = False,
) -> Any:
    """Numbers of a certain count, none of them below ``low``, as a tuple; None stays None."""
    value, kind = section[key], int if whole else int | float
    if value is None:
        return None
    if (
        not isinstance(value, list)
        or len(value) != count
        or not all(isinstance(number, kind) and number >= low for number in value)
    ):
        what = "whole numbers" if whole else "numbers"
        least = "" if low == -math.inf else f" of at least {low:g}"
        raise UsageError(f"data.{key} must be {count} {what}{least} such as [1,2,3], got {value}")
    return tuple(value)
