"""Labelled steps are pure functions of their number, and ranks share them."""

from collections.abc import Sequence

import pytest
import torch

from spadnet.data.batch import Batch
from spadnet.data.crop_plan import Size, crop_size
from spadnet.data.labelled_steps import JoinedSteps, LabelledImages, LabelledSteps


def source(seeds: Sequence[int], size: Size, *, degree: int) -> LabelledImages:
    """Noise that depends on its seed."""
    images, labels = [], []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        images.append(torch.rand(1, *size, generator=generator))
        labels.append(torch.randint(5, size, generator=generator, dtype=torch.uint8))
    image = torch.stack(images)
    return LabelledImages(image, torch.stack(labels), torch.ones(len(image), 3), 1 - image)


def steps(**settings: object) -> LabelledSteps:
    """Steps of two micro-batches, of 4 images or, where flat, 8."""
    arguments = {"max_steps": 9, "degrees_per_step": 2, "tokens": (2, 2, 2), "token_budget": 32}
    return LabelledSteps(source, **{**arguments, **settings})


def same(ours: Sequence[Batch], theirs: Sequence[Batch]) -> bool:
    """Whether micro-batches are equal to the bit."""
    return len(ours) == len(theirs) and all(
        a.degree == b.degree
        and a.keys == b.keys
        and torch.equal(a.image, b.image)
        and torch.equal(a.labels, b.labels)
        and torch.equal(a.other_view, b.other_view)
        for a, b in zip(ours, theirs, strict=True)
    )


def test_a_step_depends_on_seed_and_number_only() -> None:
    data = steps()
    last, first = data[8], data[0]
    assert same(steps()[0], first)
    assert same(steps(max_steps=9)[8], last)
    assert not same(first, last)
    assert not same(steps(seed=1)[0], first)
    keys = [key for step in range(9) for micro in data[step] for key in micro.keys]
    assert len(set(keys)) == len(keys)


def test_micro_batches_are_of_different_degrees_and_of_their_size() -> None:
    data, seen = steps(max_steps=40), set()
    for step in range(40):
        degrees = [micro.degree for micro in data[step]]
        assert len(set(degrees)) == 2
        seen |= set(degrees)
        for micro in data[step]:
            size = crop_size(micro.degree, (2, 2, 2))
            assert micro.image.shape[2:] == micro.labels.shape[1:] == size
            assert len(micro.image) == len(micro.keys) == (8 if micro.degree == 5 else 4)
    assert seen == set(range(6))
    only = steps(degrees=[3, 3, 1], degrees_per_step=1)
    assert {only[step][0].degree for step in range(9)} == {1, 3}


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_a_step(world_size: int) -> None:
    whole = steps()
    parts = [whole.for_rank(rank, world_size) for rank in range(world_size)]
    for step in range(3):
        for micros in zip(whole[step], *(part[step] for part in parts), strict=True):
            micro, shares = micros[0], micros[1:]
            assert {share.degree for share in shares} == {micro.degree}
            assert [key for share in shares for key in share.keys] == micro.keys
            assert torch.equal(torch.cat([share.image for share in shares]), micro.image)
            assert torch.equal(torch.cat([share.labels for share in shares]), micro.labels)
    assert (whole.rank, whole.world_size) == (0, 1)


def test_joined_steps_hold_the_micro_batches_of_all() -> None:
    one, two = steps(), steps(seed=1)
    joined = JoinedSteps(one, two)
    assert same(joined[3], [*one[3], *two[3]])
    share = joined.for_rank(1, 2)[3]
    assert same(share, [*one.for_rank(1, 2)[3], *two.for_rank(1, 2)[3]])


@pytest.mark.parametrize("step", [-1, 9])
def test_there_is_nothing_beyond_the_end(step: int) -> None:
    data = steps()
    assert len(data) == 9
    with pytest.raises(IndexError, match=f"step {step} of 9"):
        data[step]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"max_steps": 0}, "must be positive"),
        ({"tokens": (0, 2, 2)}, "must be positive"),
        ({"degrees": [6]}, r"degrees must be 0 to 5, got \[6\]"),
        ({"degrees": []}, r"degrees must be 0 to 5, got \[\]"),
        ({"world_size": 3}, "gives 4 images of degree 0, which 3 processes cannot share evenly"),
    ],
)
def test_impossible_steps_are_named(arguments: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        steps(**arguments)


def test_a_rank_must_be_one_of_them() -> None:
    with pytest.raises(ValueError, match=r"rank must lie in \[0, 2\), got 2"):
        steps().for_rank(2, 2)
    with pytest.raises(ValueError, match="3 processes cannot share evenly"):
        steps().for_rank(0, 3)
