"""How good predictions are: AUC, accuracy, kappa, errors of values, overlap of masks."""

from collections.abc import Mapping

import numpy as np

from spadnet.losses.targets import OutputKind

CHOOSING: Mapping[str, str] = {
    "classification": "auc",
    "multi_label": "auc",
    "ordinal": "kappa",
    "regression": "r2",
    "segmentation": "dice",
}
"""The score that decides which state of a training is best; more is better."""


def roc_auc(is_positive: np.ndarray, score: np.ndarray) -> float:
    """Area under the receiver operating characteristic: chance that a positive scores higher.

    Args:
        is_positive: [N], bool.
        score: [N]; equal scores count half.

    Returns:
        The area; NaN where there are no positives or no negatives.
    """
    is_positive = np.asarray(is_positive, dtype=bool)
    positives, negatives = int(is_positive.sum()), int((~is_positive).sum())
    if positives == 0 or negatives == 0:
        return float("nan")
    _, inverse, counts = np.unique(score, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2  # mean rank of equal scores, from 1
    total = ranks[inverse.reshape(-1)][is_positive].sum()
    return float((total - positives * (positives + 1) / 2) / (positives * negatives))


def score_targets(kind: OutputKind, prediction: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """Scores of predictions.

    Args:
        kind: What is predicted.
        prediction: Probabilities of classes or labels, or values, [N, K].
        target: Classes by number [N, 1], labels or values [N, K].

    Returns:
        ``auc`` (the mean over classes, one against all, where there are more than two),
        ``accuracy`` and ``balanced_accuracy``; ``kappa`` (quadratic) and ``mae`` of ordered
        classes; ``mae`` and ``r2`` of values.
    """
    if kind == "regression":
        error = prediction - target
        spread = ((target - target.mean(0)) ** 2).mean(0)
        return {
            "mae": float(np.abs(error).mean()),
            "r2": float((1 - (error**2).mean(0) / np.maximum(spread, 1e-12)).mean()),
        }
    if kind == "multi_label":
        areas = [roc_auc(target[:, k] > 0.5, prediction[:, k]) for k in range(target.shape[1])]
        return {
            "auc": _mean(areas),
            "accuracy": float(((prediction > 0.5) == (target > 0.5)).mean()),
        }
    truth, chosen = target[:, 0].astype(int), prediction.argmax(1)
    count = prediction.shape[1]
    if count == 2:
        auc = roc_auc(truth == 1, prediction[:, 1])
    else:
        auc = _mean([roc_auc(truth == k, prediction[:, k]) for k in range(count)])
    scores = {
        "auc": auc,
        "accuracy": float((chosen == truth).mean()),
        "balanced_accuracy": _mean(
            [float((chosen[truth == k] == k).mean()) for k in range(count) if (truth == k).any()]
        ),
    }
    if kind == "ordinal":
        scores["kappa"] = quadratic_kappa(truth, chosen, count)
        scores["mae"] = float(np.abs(chosen - truth).mean())
    return scores


def quadratic_kappa(truth: np.ndarray, chosen: np.ndarray, count: int) -> float:
    """Agreement of ordered classes beyond chance, disagreement weighed by its square.

    Args:
        truth: Classes by number, [N].
        chosen: Classes by number, [N].
        count: Number of classes.
    """
    table = np.zeros((count, count))
    np.add.at(table, (truth, chosen), 1)
    weights = (np.arange(count)[:, None] - np.arange(count)[None]) ** 2
    expected = np.outer(table.sum(1), table.sum(0)) / max(len(truth), 1)
    chance = float((weights * expected).sum())
    return 1 - float((weights * table).sum()) / chance if chance > 0 else float("nan")


def _mean(values: list[float]) -> float:
    """Mean of those that exist."""
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")
