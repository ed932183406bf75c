"""Predict images with a fine-tuned model, prepared as in its training."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from spadnet.data.image import Image, ImageError, body_axis
from spadnet.data.paste import paste_back
from spadnet.data.task_images import Preparation, View, prepare_view
from spadnet.evaluate.segmentation_scores import WINDOW_WAYS, WindowRule, segment_view
from spadnet.inference.trained_range import RangeWatch, TrainedRange
from spadnet.losses.targets import OutputKind, to_prediction

COLUMNS = ("key", "prediction", "signature")
"""Columns of ``predictions.csv`` beside those that have the names of classes."""


class Predictor(NamedTuple):
    """A fine-tuned model and what its folder tells of the task.

    Attributes:
        model: In evaluation mode.
        kind: ``"segmentation"``, or what the outputs are.
        classes: Names of the classes, labels or values.
        rule: What is done to every image.
        window: How the network is run over a volume; None but for segmentation.
        flips: Axes (0 z, 1 y, 2 x) that are mirrored, one at a time, and averaged.
        mean: Of the values in training.
        std: Of the values in training.
        watch: Warns of the first image that lies beyond the training.
        num_files: Files of an image in training; their channels are those of the image.
        image_columns: Columns of a table with these files, in order; none where they are not known.
    """

    model: nn.Module
    kind: str
    classes: tuple[str, ...]
    rule: Preparation
    window: WindowRule | None
    flips: tuple[int, ...]
    mean: Tensor | None
    std: Tensor | None
    watch: RangeWatch
    num_files: int
    image_columns: tuple[str, ...]


def build_predictor(
    model: nn.Module,
    training: Mapping[str, Any],
    *,
    stride: int,
    flips: Sequence[int] | None = None,
    overlap: float | None = None,
) -> Predictor:
    """Read what a checkpoint folder tells of its task.

    Args:
        model: A classifier or segmentor.
        training: What fine-tuning wrote under ``training``.
        stride: In-plane stride of the model.
        flips: Axes to mirror; None for those of the training.
        overlap: Share of a window that its neighbour covers too; None for that of the training.

    Raises:
        ValueError: If something is missing or of another kind.
    """
    try:
        task = training["task"]
        axes = tuple(int(axis) for axis in (task["flips"] if flips is None else flips))
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in task["preparation"].items()
        }
        window = None
        if task["kind"] == "segmentation":
            depth, height, width = task["crop"]
            share = float(task["overlap"] if overlap is None else overlap)
            ways = {name: bool(task.get(name, False)) for name in WINDOW_WAYS}
            window = WindowRule((depth, height, width), stride, share, axes, **ways)
        mean, std = (
            None if task[name] is None else torch.tensor(task[name])
            for name in ("value_mean", "value_std")
        )
        return Predictor(
            model.eval(),
            str(task["kind"]),
            tuple(map(str, task["classes"])),
            Preparation(**fields),
            window,
            axes,
            mean,
            std,
            RangeWatch(TrainedRange.of(training)),
            int(task.get("num_files", 1)),
            tuple(map(str, task.get("image_columns", ()))),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"what it tells of its task is damaged: {error}") from error


def check_names(names: Sequence[str], *, kind: str, columns: Sequence[str] = COLUMNS) -> None:
    """Refuse names of classes, labels or values that would hide columns of ``predictions.csv``.

    Args:
        names: Of the task.
        kind: What is predicted; of label maps any name will do.
        columns: The other columns.

    Raises:
        ValueError: If one is taken.
    """
    if kind != "segmentation" and (taken := [name for name in names if name in columns]):
        raise ValueError(
            f"{taken[0]!r} names a column of predictions.csv and cannot name a class or value; "
            "choose another name"
        )


@torch.no_grad()
def predict_mask(predictor: Predictor, image: Image) -> np.ndarray:
    """Classes of voxels on the image's own grid, uint8 [D, H, W].

    Args:
        predictor: Of a segmentor.
        image: As read.

    Raises:
        ImageError: If the image cannot be used.
    """
    assert predictor.window is not None
    view = _view(predictor, image)
    volume = torch.from_numpy(view.image.array)
    axis = body_axis(view.image)
    mask = segment_view(predictor.model, volume, view.degree, predictor.window, axis=axis)
    return paste_back(mask.numpy(), view.image, interpolation="nearest")


@torch.no_grad()
def predict_target(predictor: Predictor, image: Image) -> list[float]:
    """Probabilities of the classes or labels, or values.

    Args:
        predictor: Of a classifier.
        image: As read.

    Raises:
        ImageError: If the image cannot be used.
    """
    view = _view(predictor, image)
    model = predictor.model
    weight = next(model.parameters())
    channels = int(cast(Any, getattr(model, "vit", model)).in_chans)
    x = torch.from_numpy(view.image.array)[None].to(weight).expand(-1, channels, -1, -1, -1)
    views = [x, *(x.flip(2 + axis) for axis in predictor.flips)]
    kind = cast(OutputKind, predictor.kind)
    outputs = [
        to_prediction(kind, model(one, view.degree), mean=predictor.mean, std=predictor.std)
        for one in views
    ]
    return [float(value) for value in torch.cat(outputs).mean(0)]


def _view(predictor: Predictor, image: Image) -> View:
    channels = image.array.shape[0]
    if channels < predictor.num_files:  # grey would be taken for colour
        raise ImageError(
            f"{image.source}: {channels} of {predictor.num_files} channels; in the training an "
            f"image had {predictor.num_files} files"
        )
    view = prepare_view(image, predictor.rule)
    predictor.watch.look_at(view.image, view.degree)
    return view
