"""Intervals and paired comparisons of scores."""

import numpy as np
import pytest

from spadnet.evaluate.intervals import Outcome, compare, interval, resamples, score_draws


def outcome(shift: float, *, seed: int = 0, count: int = 200) -> Outcome:
    rng = np.random.default_rng(seed)
    target = (np.arange(count) % 4 == 0).astype(np.float32)
    score = rng.normal(size=count) + shift * target
    high = 1 / (1 + np.exp(-score))
    return Outcome(np.stack([1 - high, high], 1).astype(np.float32), target[:, None])


def test_resamples_keep_the_number_of_each_class() -> None:
    one = outcome(1.0)
    assert one.target is not None
    index = resamples("classification", one, draws=20)
    assert index.shape == (20, 200)
    assert set(one.target[index].sum((1, 2)).tolist()) == {50}
    assert not np.array_equal(index[0], index[1])
    assert np.array_equal(index, resamples("classification", one, draws=20))


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        values = rng.normal(0.7, 0.1, size=(40, 1))
        one = Outcome(values, None)
        found = interval(
            score_draws("segmentation", [one], resamples("segmentation", one, draws=200))["dice"]
        )
        covered += found.low <= 0.7 <= found.high
    assert 0.88 <= covered / 200 <= 0.99


def test_more_cases_give_narrower_intervals() -> None:
    widths = []
    for count in (100, 1600):
        one = outcome(1.0, count=count)
        draws = score_draws("classification", [one], resamples("classification", one, draws=200))
        score = interval(draws["auc"])
        assert score.low < score.value < score.high
        widths.append(score.high - score.low)
    assert widths[1] < widths[0] / 2


def test_pairs_tell_better_from_equal() -> None:
    weak, strong = outcome(0.5), outcome(2.5)
    index = resamples("classification", weak, draws=400)
    first, second = (score_draws("classification", [o], index)["auc"] for o in (strong, weak))
    better = compare(first, second)
    assert better.low > 0
    assert better.p < 0.01
    assert compare(first, first) == pytest.approx((0, 0, 0, 1))
    noise = score_draws("classification", [outcome(2.5, seed=5)], index)["auc"]
    assert compare(first, noise).p > 0.05


def test_seeds_are_averaged() -> None:
    outcomes = [outcome(1.0), outcome(1.0, seed=1)]
    index = resamples("classification", outcomes[0], draws=5)
    both = score_draws("classification", outcomes, index)["auc"]
    each = [score_draws("classification", [o], index)["auc"] for o in outcomes]
    assert np.allclose(both, np.mean(each, 0))
