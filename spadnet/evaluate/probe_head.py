"""A head that starts as the linear probe of its encoder's features."""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spadnet.data.task_images import TaskImage
from spadnet.evaluate.frozen import LINKS
from spadnet.evaluate.probe import LinearFit, fit_probe
from spadnet.evaluate.task_scores import run_in_batches
from spadnet.losses.scores import CHOOSING, score_targets
from spadnet.losses.targets import OutputKind, to_prediction


def put_probe(
    model: nn.Module,
    train: Sequence[TaskImage],
    val: Sequence[TaskImage],
    *,
    kind: OutputKind,
    mean: Tensor | None = None,
    std: Tensor | None = None,
    device: torch.device | None = None,
) -> LinearFit:
    """Fit a linear model of the features before the head, and make it the head, in place.

    What is fine-tuned from there starts where a frozen encoder's probe ends, so that a random head
    does not pull at good features first (Kumar et al., "Fine-Tuning can Distort Pretrained
    Features", ICLR 2022).

    Args:
        model: A classifier with a linear ``head``; left in the mode it was in.
        train: Cases that are learned from, as they are: nothing is done to them at random.
        val: Cases that choose the penalty.
        kind: What is predicted.
        mean: Of the values in training, which the head's outputs are scaled by.
        std: Of the values in training.
        device: Where features are computed; the model's own by default.

    Returns:
        What was fitted. It knows nothing of class weights, smoothed labels and mixed images.

    Raises:
        ValueError: If features are not finite; the message names the case.
    """
    head = cast(nn.Linear, model.head)
    home, was_training = head.weight.device, model.training
    model.to(device or home).eval()
    cast(Any, model).head = nn.Identity()
    try:
        features = [run_in_batches(model, images, model=model) for images in (train, val)]
    finally:
        cast(Any, model).head = head
        model.to(home).train(was_training)
    for images, found in zip((train, val), features, strict=True):
        if bad := [case.key for case, row in zip(images, found, strict=True) if not _finite(row)]:
            raise ValueError(f"{bad[0]}: the encoder's features are not finite")
    truth = np.stack([case.target.numpy() for case in val])

    def score(prediction: Tensor) -> float:
        if kind == "ordinal":  # of thresholds, which together tell classes
            prediction = to_prediction(kind, prediction.logit(eps=1e-6))
        return score_targets(kind, prediction.numpy(), truth)[CHOOSING[kind]]

    fit = fit_probe(
        features[0],
        _wanted(kind, torch.stack([case.target for case in train]), head.out_features),
        link="sigmoid" if kind == "ordinal" else LINKS.get(kind, "softmax"),
        val=features[1],
        score=score,
    )
    weight, bias = fit.folded()
    if mean is not None and std is not None:
        weight, bias = weight / std[:, None], (bias - mean) / std
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.copy_(bias)
    return fit


def _finite(row: Tensor) -> bool:
    return bool(torch.isfinite(row).all())


def _wanted(kind: OutputKind, targets: Tensor, width: int) -> Tensor:
    """What a linear model is to give, [N, K], for targets as cases hold them."""
    if kind == "classification":
        return F.one_hot(targets[:, 0].long(), width).float()
    if kind == "ordinal":
        return (targets > torch.arange(width)).float()
    return targets.float()
