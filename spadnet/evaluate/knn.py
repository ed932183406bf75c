"""k nearest neighbours on frozen features; their number is chosen on validation."""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from spadnet.evaluate.probe import Fitted, Scaling

NEIGHBOURS = (1, 3, 5, 10, 20, 50)
TEMPERATURE = 0.07
_CHUNK = 2048


def fit_knn(
    x: Tensor,
    y: Tensor,
    *,
    val: Tensor,
    others: Sequence[Tensor],
    score: Callable[[Tensor], float],
    neighbours: Sequence[int] = NEIGHBOURS,
) -> Fitted:
    """Average the targets of the nearest training cases, weighted by ``exp(cosine / 0.07)``.

    Args:
        x: Training features, [N, C]; brought to mean 0 and variance 1.
        y: Probabilities of classes, labels or values, [N, K].
        val: Validation features, [M, C].
        others: Features to predict in the end.
        score: Scores a prediction of ``val``, [M, K]; more is better. Equal scores go to the
            smaller number.
        neighbours: Numbers to choose from; those beyond N are left out.
    """
    scaling = Scaling.of(x)
    bank = F.normalize(scaling(x))
    fitting = sorted({min(k, len(x)) for k in neighbours})
    similarity, index = _nearest(F.normalize(scaling(val)), bank, fitting[-1])
    best, chosen = -math.inf, fitting[0]
    for k in fitting:
        found = score(_vote(similarity, index, y, k))
        if not math.isnan(found) and found > best:
            best, chosen = found, k
    predictions = [
        _vote(*_nearest(F.normalize(scaling(other)), bank, chosen), y, chosen) for other in others
    ]
    return Fitted(predictions, float(chosen), 0)


def _nearest(query: Tensor, bank: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Cosines and places of the nearest, nearest first, [M, count] each."""
    parts = [(part @ bank.T).topk(count) for part in query.split(_CHUNK)]
    return torch.cat([p.values for p in parts]), torch.cat([p.indices for p in parts])


def _vote(similarity: Tensor, index: Tensor, y: Tensor, count: int) -> Tensor:
    weight = (similarity[:, :count] / TEMPERATURE).softmax(1)
    return torch.einsum("mk,mkc->mc", weight, y[index[:, :count]])
