"""How sure a score is: intervals and paired comparisons from resampled test cases."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from spadnet.losses.scores import score_targets
from spadnet.losses.targets import OutputKind

DRAWS = 1000
LEVEL = 0.95


class Outcome(NamedTuple):
    """What came out of a model for each test case.

    Attributes:
        values: Probabilities or values, [N, K]; of label maps the Dice of each class, [N, K - 1].
        target: Classes by number [N, 1], labels or values [N, K]; None for label maps.
    """

    values: np.ndarray
    target: np.ndarray | None


class Score(NamedTuple):
    """A score and its 95 % interval."""

    value: float
    low: float
    high: float


class Difference(NamedTuple):
    """How much better one is than the other on the same cases.

    Attributes:
        value: First less second.
        low: Lower end of the 95 % interval.
        high: Upper end.
        p: Two-sided, of no difference.
    """

    value: float
    low: float
    high: float
    p: float


Scorer = Callable[[np.ndarray], Mapping[str, float]]
"""Scores the cases at some places."""


def scorer_of(kind: str, outcome: Outcome) -> Scorer:
    """What scores an outcome on chosen cases.

    Args:
        kind: Of the task.
        outcome: Of all test cases.
    """
    values, target = outcome

    def of_maps(index: np.ndarray) -> dict[str, float]:
        return {"dice": float(values[index].mean())}

    def of_targets(index: np.ndarray) -> dict[str, float]:
        assert target is not None
        known: OutputKind = kind  # type: ignore[assignment]
        return score_targets(known, values[index], target[index])

    return of_maps if target is None else of_targets


def resamples(kind: str, outcome: Outcome, *, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """Places of resampled cases, [draws, N]; of classes, each keeps its number of cases."""
    rng = np.random.default_rng(seed)
    count = len(outcome.values)
    if kind not in ("classification", "ordinal") or outcome.target is None:
        return rng.integers(count, size=(draws, count))
    parts = []
    for value in np.unique(outcome.target[:, 0]):
        members = np.flatnonzero(outcome.target[:, 0] == value)
        parts.append(members[rng.integers(len(members), size=(draws, len(members)))])
    return np.concatenate(parts, axis=1)


def score_draws(kind: str, outcomes: Sequence[Outcome], index: np.ndarray) -> dict[str, np.ndarray]:
    """Scores of all cases (first) and of each resample, [1 + draws]; mean over the outcomes.

    Args:
        kind: Of the task.
        outcomes: Of several seeds on the same test cases.
        index: From :func:`resamples`.
    """
    everything = np.arange(len(outcomes[0].values))
    totals: dict[str, np.ndarray] = {}
    for outcome in outcomes:
        score = scorer_of(kind, outcome)
        rows = [score(everything), *(score(places) for places in index)]
        for name in rows[0]:
            found = np.array([row[name] for row in rows])
            totals[name] = totals.get(name, 0.0) + found / len(outcomes)
    return totals


def interval(draws: np.ndarray) -> Score:
    """Score and interval of what :func:`score_draws` gives for one measure."""
    tail = 100 * (1 - LEVEL) / 2
    known = draws[1:][np.isfinite(draws[1:])]
    if not known.size:
        return Score(float(draws[0]), float("nan"), float("nan"))
    low, high = np.percentile(known, [tail, 100 - tail])
    return Score(float(draws[0]), float(low), float(high))


def compare(first: np.ndarray, second: np.ndarray) -> Difference:
    """Paired comparison: draws of two models from the same resamples."""
    gap = first - second
    score = interval(gap)
    known = gap[1:][np.isfinite(gap[1:])]
    # Counted with the observed one, so that no p is 0.
    below, above = (1 + int((known <= 0).sum())), (1 + int((known >= 0).sum()))
    return Difference(*score, p=min(1.0, 2 * min(below, above) / (1 + len(known))))
