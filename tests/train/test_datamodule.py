"""Steps are served from any start, the same at any number of workers."""

from collections.abc import Callable

import pytest
import torch
from torch.utils.data import Dataset

from spadnet.data.batch import Batch
from spadnet.train.datamodule import StepDataModule, StepSampler


def test_sampler_serves_the_rest_and_counts_the_whole() -> None:
    sampler = StepSampler(3, 6)
    assert list(sampler) == [3, 4, 5]
    assert len(sampler) == 6


def test_workers_change_nothing(random_steps: Callable[[], Dataset[list[Batch]]]) -> None:
    loaders = [
        StepDataModule(random_steps(), max_steps=3, num_workers=n).train_dataloader()
        for n in (0, 2)
    ]
    for a, b in zip(*loaders, strict=True):
        assert [micro.keys for micro in a] == [micro.keys for micro in b]
        assert all(torch.equal(x.image, y.image) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("wrong", [{"max_steps": 0}, {"max_steps": 1, "num_workers": -1}])
def test_impossible_numbers_are_refused(
    random_steps: Callable[[], Dataset[list[Batch]]], wrong: dict[str, int]
) -> None:
    with pytest.raises(ValueError, match="must"):
        StepDataModule(random_steps(), **wrong)
