"""Scores of predictions against what they are by definition."""

import math

import numpy as np
import pytest

from spadnet.losses.scores import quadratic_kappa, roc_auc, score_targets


def test_auc_is_the_chance_that_a_positive_scores_higher() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random(60) < 0.3
    score = rng.integers(0, 8, 60) + truth  # many ties
    pairs = [1.0 if p > n else 0.5 if p == n else 0.0 for p in score[truth] for n in score[~truth]]
    assert roc_auc(truth, score) == pytest.approx(np.mean(pairs))
    assert roc_auc(truth, truth.astype(float)) == 1
    assert math.isnan(roc_auc(np.ones(3, dtype=bool), np.arange(3)))


def test_scores_of_classes() -> None:
    target = np.array([[0], [0], [0], [1]])
    probability = np.array([[0.9, 0.1], [0.8, 0.2], [0.4, 0.6], [0.3, 0.7]])
    scores = score_targets("classification", probability, target)
    assert scores["auc"] == 1
    assert scores["accuracy"] == 0.75
    assert scores["balanced_accuracy"] == pytest.approx((2 / 3 + 1) / 2)
    three = score_targets("classification", np.eye(3)[[0, 1, 2]], np.array([[0], [1], [2]]))
    assert three["auc"] == three["accuracy"] == 1


def test_kappa_punishes_far_misses_more() -> None:
    truth = np.array([0, 1, 2, 3])
    assert quadratic_kappa(truth, truth, 4) == 1
    near = quadratic_kappa(truth, np.array([1, 1, 2, 3]), 4)
    far = quadratic_kappa(truth, np.array([3, 1, 2, 3]), 4)
    assert 1 > near > far
    assert quadratic_kappa(truth, np.array([1, 1, 1, 1]), 4) == pytest.approx(0)


def test_scores_of_labels_and_values() -> None:
    target = np.array([[0, 1], [1, 1], [1, 0]])
    assert score_targets("multi_label", target * 0.8 + 0.1, target) == {"auc": 1, "accuracy": 1}
    values = np.array([[1.0], [2.0], [3.0]])
    assert score_targets("regression", values, values) == {"mae": 0, "r2": 1}
    assert score_targets("regression", np.full((3, 1), 2.0), values)["r2"] == pytest.approx(0)
