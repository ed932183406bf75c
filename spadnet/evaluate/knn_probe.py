"""k-nearest-neighbour accuracy of an encoder's features: a probe that trains nothing."""

from collections import defaultdict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from spadnet.data.task_images import TaskImage
from spadnet.evaluate.held_out import evaluating, fit_to_multiple
from spadnet.models.vit import SpadViT

TEMPERATURE = 0.07


def knn_accuracy(
    features: Tensor, labels: Tensor, queries: Tensor, truth: Tensor, *, neighbours: int = 20
) -> float:
    """Share of queries that their nearest neighbours classify rightly.

    Neighbours vote with ``exp(cosine similarity / 0.07)`` (Wu et al., arXiv 1805.01978).

    Args:
        features: Of labelled samples, [N, C].
        labels: Their classes, [N], int64.
        queries: Features to be classified, [M, C].
        truth: Their classes, [M], int64.
        neighbours: Number of neighbours, at most N.
    """
    similarity = F.normalize(queries.float(), dim=1) @ F.normalize(features.float(), dim=1).t()
    near = similarity.topk(min(neighbours, features.shape[0]), dim=1)
    num_classes = int(torch.cat([labels, truth]).max()) + 1
    votes = torch.zeros(queries.shape[0], num_classes, device=queries.device)
    votes.scatter_add_(1, labels[near.indices], (near.values / TEMPERATURE).exp())
    return float((votes.argmax(1) == truth).double().mean())


def probe_accuracy(
    vit: SpadViT,
    train: Sequence[TaskImage],
    val: Sequence[TaskImage],
    *,
    neighbours: int = 20,
    batch_size: int = 64,
) -> float:
    """Accuracy on validation cases of the nearest training cases, by mean patch tokens.

    Args:
        vit: Encoder; its mode is left as it was.
        train: Labelled cases, each with one class.
        val: Cases to be classified.
        neighbours: Number of neighbours.
        batch_size: Cases of one size and degree that pass the encoder together.
    """
    found = [_features(vit, cases, batch_size) for cases in (train, val)]
    classes = [
        torch.stack([case.target[0].long() for case in cases]).to(found[0].device)
        for cases in (train, val)
    ]
    return knn_accuracy(found[0], classes[0], found[1], classes[1], neighbours=neighbours)


def _features(vit: SpadViT, cases: Sequence[TaskImage], batch_size: int) -> Tensor:
    """Mean patch token of each case, [N, C]."""
    like = next(vit.parameters())
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, case in enumerate(cases):
        groups[case.degree, *case.image.shape].append(index)
    rows: dict[int, Tensor] = {}
    with evaluating(vit):
        for (degree, *_), members in groups.items():
            for first in range(0, len(members), batch_size):
                part = members[first : first + batch_size]
                fitted = [fit_to_multiple(cases[i].image.float(), degree) for i in part]
                x = torch.stack(fitted).to(like.device, like.dtype)
                tokens = vit.forward_features(x.expand(-1, vit.in_chans, -1, -1, -1), degree)
                means = tokens[:, vit.num_prefix_tokens :].mean(1)
                rows |= dict(zip(part, means, strict=True))
    return torch.stack([rows[index] for index in range(len(cases))])
