"""Segment cases on the grid of their own files, and score each class of each case."""

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from monai.metrics import compute_dice, compute_hausdorff_distance, compute_surface_dice
from monai.networks.utils import one_hot
from monai.utils import optional_import
from torch import Tensor, nn

from spadnet.data.image import Image, body_axis
from spadnet.data.paste import paste_back
from spadnet.data.task_images import CaseReader, TaskImage, prepare_view
from spadnet.data.tasks import Case
from spadnet.inference.sliding_window import Predict, segment, stitch, with_flips
from spadnet.models.segmentor import VitSegmentor
from spadnet.models.spad_unet import SpadUNet
from spadnet.models.turned import run_along
from spadnet.spacing import MAX_DEGREE, Spacing, depth_stride, required_multiple, turned_axes

logger = logging.getLogger(__name__)


class WindowRule(NamedTuple):
    """How a network is run over a volume.

    Attributes:
        crop: Voxels (z, y, x) of a window of an isotropic image; slices ``2**degree`` times thicker
            are as many times fewer.
        stride: In-plane stride of the network; sizes are padded to its multiples.
        overlap: Share of a window that its neighbour covers too.
        flips: Axes (0 z, 1 y, 2 x) whose flips are averaged.
        follows_body: Whether the network was trained with its kernels, and flips, turned with the
            body where slices lie along another axis.
        thin_logits: Whether it was trained to decode thick slices on thin ones. Their
            probabilities are averaged over each thick slice.
        centred: Whether images smaller than a window lie in its middle, as in training: for a
            network that knows positions.
    """

    crop: tuple[int, int, int]
    stride: int
    overlap: float = 0.5
    flips: tuple[int, ...] = ()
    follows_body: bool = False
    thin_logits: bool = False
    centred: bool = False


WINDOW_WAYS = ("follows_body", "thin_logits", "centred")
"""Fields of a window rule that come from a training; a model's folder keeps them."""


def window_rule(
    model: nn.Module,
    crop: tuple[int, int, int],
    *,
    stride: int,
    overlap: float,
    flips: Sequence[int],
    thick_slices: bool,
) -> WindowRule:
    """How a network in training is run over volumes.

    Args:
        model: In training.
        crop: Of the training.
        stride: In-plane stride of the network.
        overlap: Share of a window that its neighbour covers too.
        flips: Axes whose flips are averaged.
        thick_slices: Whether the training has thick slices that are averages of thin ones, and no
            others.
    """
    return WindowRule(
        crop,
        stride,
        overlap,
        tuple(flips),
        follows_body=True,
        thin_logits=thick_slices and isinstance(model, SpadUNet),
        centred=isinstance(model, VitSegmentor),
    )


class CaseScore(NamedTuple):
    """One class of one case.

    Attributes:
        case: Name of the case.
        label: Name of the class.
        dice: Overlap, in [0, 1]; 1 where neither has the class, 0 where the mask alone has it.
        nsd: Surface that agrees within the tolerance, in [0, 1]; NaN where it is not known.
        hd95: 95th percentile of the surface distances in mm; NaN where either lacks the class.
    """

    case: str
    label: str
    dice: float
    nsd: float
    hd95: float


def segment_view(
    model: nn.Module, image: Tensor, degree: int, rule: WindowRule, *, axis: int = 0
) -> Tensor:
    """Most probable class of each voxel, uint8 [D, H, W].

    Args:
        model: In evaluation mode.
        image: Prepared, [C, D, H, W].
        degree: Anisotropy.
        rule: How.
        axis: Of the body that z lies along: 0 for its z, 1 for y, 2 for x.
    """
    options, run = _options(degree, rule), predictor(model, degree, rule, axis=axis)
    placed, inside = _place(image.float(), options, centred=rule.centred)
    return segment(placed, run, **options)[inside]


def segment_thin(
    model: nn.Module, image: Tensor, degree: int, rule: WindowRule, *, axis: int = 0
) -> Tensor:
    """Most probable class on slices as thin as pixels are wide, uint8 [D * 2**degree, H, W].

    Args:
        model: In evaluation mode, trained to decode thin slices (``rule.thin_logits``).
        image: Prepared, [C, D, H, W].
        degree: Anisotropy.
        rule: How.
        axis: Of the body that z lies along.
    """
    count = 2**degree
    whole = predictor(model, degree, rule, axis=axis, thin=True)

    def predict(x: Tensor) -> Tensor:
        return whole(x[:, :, ::count])

    thin, options = image.float().repeat_interleave(count, dim=1), _options(0, rule)
    options["multiple"] = (max(rule.stride, count), rule.stride, rule.stride)  # whole thick slices
    return segment(thin, predict, **options)


def class_probabilities(
    model: nn.Module, image: Tensor, degree: int, rule: WindowRule, *, axis: int = 0
) -> Tensor:
    """Probability of each class, float32 [K, D, H, W]; for small images, as it holds all of them.

    Args:
        model: In evaluation mode.
        image: Prepared, [C, D, H, W].
        degree: Anisotropy.
        rule: How.
        axis: Of the body that z lies along.
    """
    options, run = _options(degree, rule), predictor(model, degree, rule, axis=axis)
    placed, inside = _place(image.float(), options, centred=rule.centred)
    return stitch(placed, run, **options)[:, *inside]


def predictor(
    model: nn.Module, degree: int, rule: WindowRule, *, axis: int = 0, thin: bool = False
) -> Predict:
    """What gives class probabilities of windows, averaged over flips.

    Args:
        model: Of its levels the first counts.
        degree: Anisotropy.
        rule: How.
        axis: Of the body that z lies along.
        thin: Whether to give the probabilities of thin slices instead of their average.
    """
    device = next(model.parameters()).device
    channels = int(cast(Any, getattr(model, "vit", model)).in_chans)
    along = axis if rule.follows_body else 0
    out_degree = 0 if rule.thin_logits and 0 < degree < MAX_DEGREE else None

    def predict(x: Tensor) -> Tensor:
        x = x.to(device).expand(-1, channels, -1, -1, -1)
        logits = run_along(model, x, degree, axis=along, out_degree=out_degree)
        finest = logits if isinstance(logits, Tensor) else logits[0]
        found = finest.float().softmax(1).cpu()
        is_finer = found.shape[2] > x.shape[2] and not thin
        return found.unflatten(2, (x.shape[2], -1)).mean(3) if is_finer else found

    if not rule.flips:
        return predict
    order = turned_axes(along)
    flips = [order.index(flip) for flip in rule.flips]
    return with_flips(predict, [flip for flip in flips if flip or degree < MAX_DEGREE])


def _options(degree: int, rule: WindowRule) -> dict[str, Any]:
    depth, height, width = rule.crop
    slices = 1 if degree == MAX_DEGREE else max(depth >> degree, depth_stride(rule.stride, degree))
    return {
        "window": (slices, height, width),
        "multiple": required_multiple(degree, stride=rule.stride),
        "overlap": rule.overlap,
    }


def _place(
    image: Tensor, options: Mapping[str, Any], *, centred: bool
) -> tuple[Tensor, tuple[slice, ...]]:
    """Repeat an image's borders until it fills a window, and tell where in that it lies."""
    sizes = image.shape[1:]
    if not centred:
        return image, tuple(slice(0, have) for have in sizes)
    pads: list[int] = []
    inside: list[slice] = []
    for have, window, step in zip(sizes, options["window"], options["multiple"], strict=True):
        missing = max(-(-window // step) * step - have, 0)
        before = (missing + 1) // 2  # as crops of a training are placed
        pads = [before, missing - before, *pads]
        inside.append(slice(before, before + have))
    return F.pad(image[None], pads, mode="replicate")[0], tuple(inside)


@torch.no_grad()
def mean_dice(
    model: nn.Module, images: Sequence[TaskImage], *, rule: WindowRule, classes: Sequence[str]
) -> dict[str, float]:
    """Dice of each class but the background on the prepared grids, mean over cases, and of all.

    Args:
        model: In evaluation mode.
        images: Cases.
        rule: How the network is run.
        classes: Names by voxel value.
    """
    rows = [
        dice_of(
            segment_view(model, case.image, case.degree, rule, axis=case.axis),
            case.target,
            len(classes),
        )
        for case in images
    ]
    each = np.mean(np.array(rows), axis=0)
    return {"dice": float(each.mean())} | {
        f"dice_{name}": float(value) for name, value in zip(classes[1:], each, strict=True)
    }


def dice_of(mask: Tensor, label: Tensor, count: int) -> list[float]:
    """Dice of the classes 1 to ``count - 1`` of two maps [D, H, W].

    It is 1 where neither has the class, and 0 where the mask alone has it.
    """
    pair = _one_hot(mask, count), _one_hot(label, count)
    found = compute_dice(*pair, include_background=False, ignore_empty=False)
    return [float(value) for value in found[0].tolist()]


class Segmented(NamedTuple):
    """A case's mask on the grid of the image as read, uint8 [D, H, W], and its scores."""

    case: Case
    image: Image
    mask: np.ndarray
    scores: list[CaseScore]


@torch.no_grad()
def segment_cases(
    model: nn.Module,
    cases: Sequence[Case],
    *,
    reader: CaseReader,
    rule: WindowRule,
    classes: Sequence[str],
    tolerance: float = 1.0,
    surfaces: bool = True,
) -> Iterator[Segmented]:
    """Segment cases on their own grids and score them there.

    Args:
        model: In evaluation mode.
        cases: With label maps.
        reader: Reads and prepares them.
        rule: How the network is run.
        classes: Names by voxel value.
        tolerance: Of the surface Dice, in mm.
        surfaces: Whether to measure surfaces too, which takes scipy.
    """
    measures = surfaces and optional_import("scipy")[1]
    if surfaces and not measures:
        logger.warning("Dice alone: surface distances need scipy; pip install 'spadnet[metrics]'")
    for case in cases:
        image = reader.image(case)
        label = torch.from_numpy(reader.label(case, image))
        view = prepare_view(image, reader.rule)
        volume, axis = torch.from_numpy(view.image.array), body_axis(view.image)
        mask = segment_view(model, volume, view.degree, rule, axis=axis)
        own = paste_back(mask.numpy(), view.image, interpolation="nearest")
        found = torch.from_numpy(np.ascontiguousarray(own))
        dice = dice_of(found, label, len(classes))
        near: tuple[list[float], list[float]] = ([float("nan")] * len(dice),) * 2
        if measures:
            near = surface_scores(found, label, image.spacing, len(classes), tolerance)
        scores = [
            CaseScore(case.key, name, *values)
            for name, *values in zip(classes[1:], dice, *near, strict=True)
        ]
        yield Segmented(case, image, own, scores)


def surface_scores(
    mask: Tensor, label: Tensor, spacing: Spacing, count: int, tolerance: float
) -> tuple[list[float], list[float]]:
    """Surface Dice and 95th percentile of the surface distance in mm; needs scipy.

    Args:
        mask: Classes, [D, H, W].
        label: Classes, [D, H, W].
        spacing: Of both in mm.
        count: Number of classes, background included.
        tolerance: Of the surface Dice, in mm.

    Returns:
        One of each per class but the background; NaN where it is not defined.
    """
    pair = _one_hot(mask, count), _one_hot(label, count)
    if spacing.is_planar:
        pair = pair[0][:, :, 0], pair[1][:, :, 0]
    mm = tuple(spacing[1:] if spacing.is_planar else spacing)
    run = partial(compute_surface_dice, class_thresholds=[tolerance] * (count - 1))
    far_of = partial(compute_hausdorff_distance, percentile=95)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a class that is nowhere is told by NaN
        nsd = run(*pair, include_background=False, spacing=mm)[0].tolist()
        far = far_of(*pair, include_background=False, spacing=mm)
    hd95 = [float(value) if np.isfinite(value) else float("nan") for value in far[0].tolist()]
    return [float(value) for value in nsd], hd95


def _one_hot(label: Tensor, count: int) -> Tensor:
    return one_hot(label.long()[None, None], num_classes=count)
