"""Degrees of the steps, random numbers of the samples, weights of the sets."""

from collections import Counter

import numpy as np
import pytest

from spadnet.data.sampler import balanced_weights, degrees_of_step, step_rng


@pytest.mark.parametrize("per_step", [1, 2, 3, 4, 6, 9])
def test_each_round_has_every_degree_and_no_step_has_one_twice(per_step: int) -> None:
    degrees = (0, 1, 2, 3, 4, 5)
    count = min(per_step, 6)
    steps = -(-6 // count)
    for turn in range(20):
        drawn = [
            degrees_of_step(7, turn * steps + place, degrees=degrees, per_step=per_step)
            for place in range(steps)
        ]
        assert {degree for step in drawn for degree in step} == set(degrees)
        assert all(len(set(step)) == len(step) == count for step in drawn)


def test_degrees_occur_equally_often_and_mix() -> None:
    drawn = [degrees_of_step(0, step, degrees=range(6), per_step=4) for step in range(600)]
    counts = Counter(degree for step in drawn for degree in step)
    assert max(counts.values()) < 1.2 * min(counts.values())
    assert len({frozenset(step) for step in drawn}) == 15


def test_degrees_depend_on_the_seed_and_the_step_alone() -> None:
    first = [degrees_of_step(1, step, degrees=range(6), per_step=3) for step in range(50)]
    assert first == [degrees_of_step(1, s, degrees=range(6), per_step=3) for s in range(50)]
    assert first != [degrees_of_step(2, s, degrees=range(6), per_step=3) for s in range(50)]


@pytest.mark.parametrize("per_step", [1, 3])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 1.0])
def test_2d_micro_batches_have_the_share_asked_for(share: float, per_step: int) -> None:
    drawn = [
        degrees_of_step(3, step, degrees=range(6), per_step=per_step, flat_share=share)
        for step in range(300)
    ]
    assert all(len(step) == per_step for step in drawn)
    counts = Counter(degree for step in drawn for degree in step)
    assert counts[5] == pytest.approx(300 * per_step * share, abs=1)
    others = [counts[degree] for degree in range(5)]
    assert max(others) - min(others) <= 1
    again = degrees_of_step(3, 123, degrees=range(6), per_step=per_step, flat_share=share)
    assert again == drawn[123]


def test_streams_of_random_numbers_differ() -> None:
    places = [
        (seed, step, part, sample)
        for seed in (0, 1, 2**63)
        for step in (0, 1, 10**9)
        for part in (0, 1)
        for sample in (-1, 0, 1, 100)
    ]
    first = {
        place: step_rng(place[0], place[1], part=place[2], sample=place[3]).random()
        for place in places
    }
    assert len(set(first.values())) == len(places)
    again = step_rng(1, 10**9, part=1, sample=100).random()
    assert again == first[1, 10**9, 1, 100]


def test_neighbouring_samples_are_not_correlated() -> None:
    draws = np.array([step_rng(0, step, part=0, sample=0).random(4) for step in range(2000)])
    assert abs(np.corrcoef(draws[:-1, 0], draws[1:, 0])[0, 1]) < 0.06
    assert abs(np.corrcoef(draws[:, 0], draws[:, 1])[0, 1]) < 0.06


def test_balanced_weights() -> None:
    sets = ["big"] * 16 + ["small"] * 4
    by_set = {
        power: [
            sum(w for w, s in zip(balanced_weights(sets, power=power), sets, strict=True) if s == n)
            for n in ("big", "small")
        ]
        for power in (0.0, 0.5, 1.0)
    }
    assert by_set[0.0] == pytest.approx([1, 1])
    assert by_set[0.5] == pytest.approx([4, 2])
    assert by_set[1.0] == pytest.approx([16, 4])
    for wrong in ({"power": -1.0}, {"power": float("nan")}, {"set_weights": {"big": -0.5}}):
        with pytest.raises(ValueError, match="not negative"):
            balanced_weights(sets, **wrong)  # type: ignore[arg-type]
    weights = balanced_weights(sets, set_weights={"big": 0.1})
    assert sum(weights[:16]) == pytest.approx(0.4)
