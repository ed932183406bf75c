"""Predict the cases of a task with a fine-tuned model, and score them case by case."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from spadnet.data.task_images import TaskImage
from spadnet.losses.scores import score_targets
from spadnet.losses.targets import OutputKind, to_prediction


class Predictions(NamedTuple):
    """What a model says of cases.

    Attributes:
        keys: Names of the cases.
        values: Probabilities of classes or labels, or values, [N, K].
        target: Classes by number [N, 1], labels or values [N, K].
    """

    keys: list[str]
    values: np.ndarray
    target: np.ndarray

    def scores(self, kind: OutputKind) -> dict[str, float]:
        """Scores of all cases together."""
        return score_targets(kind, self.values, self.target)


def predict_targets(
    model: nn.Module,
    images: Sequence[TaskImage],
    *,
    kind: OutputKind,
    mean: Tensor | None = None,
    std: Tensor | None = None,
    batch_size: int = 32,
    flips: Sequence[int] = (),
) -> Predictions:
    """Predict classes, labels or values.

    Args:
        model: In evaluation mode.
        images: Cases; those of one size and degree pass together.
        kind: What is predicted.
        mean: Of the values in training.
        std: Of the values in training.
        batch_size: Cases that pass the model together.
        flips: Of z, y, x (0, 1, 2) those mirrored in a second run whose prediction is averaged.
    """

    def predict(x: Tensor, degree: int) -> Tensor:
        outputs = [to_prediction(kind, model(x, degree), mean=mean, std=std)]
        for axis in flips:
            mirrored = model(x.flip(2 + axis), degree)
            outputs.append(to_prediction(kind, mirrored, mean=mean, std=std))
        return torch.stack(outputs).mean(0)

    return Predictions(
        [case.key for case in images],
        run_in_batches(predict, images, model=model, batch_size=batch_size).numpy(),
        np.stack([case.target.numpy() for case in images]),
    )


@torch.no_grad()
def run_in_batches(
    function: Callable[[Tensor, int], Tensor],
    images: Sequence[TaskImage],
    *,
    model: nn.Module,
    batch_size: int = 32,
) -> Tensor:
    """Results [N, K] of a function of images and their degree, in the order of the cases.

    Args:
        function: Takes images [B, C, D, H, W] on the model's device, gives [B, K].
        images: Cases; those of one size and degree pass together.
        model: Tells device and channels.
        batch_size: Cases that pass together.
    """
    device = next(model.parameters()).device
    channels = int(cast(Any, getattr(model, "vit", model)).in_chans)
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, case in enumerate(images):
        groups[case.degree, *case.image.shape].append(index)
    rows: dict[int, Tensor] = {}
    for (degree, *_), members in groups.items():
        for first in range(0, len(members), batch_size):
            part = members[first : first + batch_size]
            x = torch.stack([images[i].image for i in part]).to(device).float()
            found = function(x.expand(-1, channels, -1, -1, -1), degree).cpu()
            rows |= dict(zip(part, found, strict=True))
    return torch.stack([rows[i] for i in range(len(images))])
