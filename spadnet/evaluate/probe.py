"""Linear probe: logistic or ridge regression on frozen features, penalty chosen on validation."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

PENALTIES = (10.0, 1.0, 0.1, 1e-2, 1e-3, 1e-4, 1e-5)
"""Half the weight of the squared norm beside the mean loss; features have unit variance."""

_MAX_ITERATIONS = 100


class Scaling(NamedTuple):
    """Mean [C] and standard deviation [C] of the training features."""

    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, x: Tensor) -> "Scaling":
        """Measure features [N, C]; what does not vary is left at 0."""
        std = x.std(0, correction=0)
        return cls(x.mean(0), torch.where(std > 1e-6 * x.abs().amax(0).clamp_min(1e-6), std, 1e30))

    def __call__(self, x: Tensor) -> Tensor:
        """Bring features [N, C] to mean 0 and variance 1."""
        return (x - self.mean) / self.std


class Fitted(NamedTuple):
    """What a probe says with the penalty that validation prefers.

    Attributes:
        prediction: Probabilities, or values, of each set of features asked for, [N, K] each.
        chosen: The penalty, or the number of neighbours.
        num_trained: Trained parameters.
    """

    prediction: list[Tensor]
    chosen: float
    num_trained: int


class LinearFit(NamedTuple):
    """A linear model of features.

    Attributes:
        scaling: Of the features.
        weight: Of the scaled features, [C, K].
        bias: [K].
        link: ``"softmax"``, ``"sigmoid"`` or ``"identity"``.
        chosen: The penalty.
    """

    scaling: Scaling
    weight: Tensor
    bias: Tensor
    link: str
    chosen: float

    @property
    def num_trained(self) -> int:
        """Trained parameters."""
        return self.weight.numel() + self.bias.numel()

    def predict(self, x: Tensor) -> Tensor:
        """Probabilities or values [N, K] of features [N, C]."""
        return _predict(self.scaling(x), self.weight, self.bias, self.link)

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weight [K, C] and bias [K] of a linear layer that takes the features as they are."""
        weight = self.weight.double() / self.scaling.std.double()[:, None]
        bias = self.bias.double() - self.scaling.mean.double() @ weight
        return weight.T.float().contiguous(), bias.float()


def fit_probe(
    x: Tensor,
    y: Tensor,
    *,
    link: str,
    val: Tensor,
    score: Callable[[Tensor], float],
    penalties: Sequence[float] = PENALTIES,
) -> LinearFit:
    """Fit a linear model for each penalty and keep the one that scores best on validation.

    Args:
        x: Training features, [N, C].
        y: Probabilities of classes, labels or values, [N, K].
        link: ``"softmax"``, ``"sigmoid"`` or ``"identity"``.
        val: Validation features, [M, C].
        score: Scores a prediction of ``val``, [M, K]; more is better. Equal scores go to the
            larger penalty.
        penalties: To choose from.
    """
    scaling = Scaling.of(x)
    x, val = scaling(x), scaling(val)
    basis = None
    if x.shape[1] > len(x):  # the solution lies in the span of the features
        basis = torch.linalg.qr(x.T).Q
        x, val = x @ basis, val @ basis
    offset, spread = torch.zeros(y.shape[1]), torch.ones(y.shape[1])
    if link == "identity":
        offset, spread = y.mean(0), y.std(0, correction=0).clamp_min(1e-6)
    y = (y - offset) / spread
    weight, bias = torch.zeros(x.shape[1], y.shape[1]), torch.zeros(y.shape[1])
    best: tuple[float, float, Tensor, Tensor] | None = None
    for penalty in sorted(penalties, reverse=True):
        weight, bias = _minimise(x, y, weight, bias, link=link, penalty=penalty)
        found = score(_predict(val, weight * spread, bias * spread + offset, link))
        found = -math.inf if math.isnan(found) else found
        if best is None or found > best[0]:
            best = found, penalty, weight, bias
    assert best is not None
    _, chosen, weight, bias = best
    weight = weight if basis is None else basis @ weight
    return LinearFit(scaling, weight * spread, bias * spread + offset, link, chosen)


def _predict(x: Tensor, weight: Tensor, bias: Tensor, link: str) -> Tensor:
    z = x @ weight + bias
    if link == "softmax":
        return z.softmax(1)
    return z.sigmoid() if link == "sigmoid" else z


def _minimise(
    x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, *, link: str, penalty: float
) -> tuple[Tensor, Tensor]:
    """Weights [C, K] and bias [K] of the smallest penalised loss, from where they are now."""
    if link == "identity":
        gram = x.T @ x / len(x) + 2 * penalty * torch.eye(x.shape[1])
        return torch.linalg.solve(gram, x.T @ y / len(x)), torch.zeros_like(bias)
    w, b = weight.clone().requires_grad_(True), bias.clone().requires_grad_(True)
    optimizer = torch.optim.LBFGS(
        [w, b],
        max_iter=_MAX_ITERATIONS,
        history_size=10,
        tolerance_grad=1e-5,
        tolerance_change=1e-7,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        z = x @ w + b
        if link == "softmax":
            loss = F.cross_entropy(z, y)
        else:
            loss = F.binary_cross_entropy_with_logits(z, y)
        loss = loss + penalty * (w**2).sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return w.detach(), b.detach()
