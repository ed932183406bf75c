"""Steps are served from any start, the same at any number of workers."""

from collections.abc import Callable

import pytest
import torch
from torch.utils.data import Dataset

from spadnet.data.augment import IntensityDraw
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


class SlowSteps(Dataset[list[Batch]]):
    """Takes a fixed time for every batch."""

    def __init__(self, clock: list[float]) -> None:
        self.clock = clock

    def __getitem__(self, step: int) -> list[Batch]:
        self.clock[0] += 1.0
        return []


def test_time_spent_waiting_is_counted_after_the_first_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [0.0]
    monkeypatch.setattr("spadnet.train.datamodule.time.monotonic", lambda: clock[0])
    module = StepDataModule(SlowSteps(clock), max_steps=5)
    assert module.wait_share is None
    for _ in module.train_dataloader():
        clock[0] += 3.0  # the step
    assert module.wait_share == pytest.approx(4 / (4 + 4 * 3))


def test_intensities_are_changed_after_the_transfer() -> None:
    image = torch.rand(2, 1, 1, 4, 4)
    draw = IntensityDraw(
        *(torch.tensor([1.0, 1.0]) for _ in range(2)),
        torch.tensor([2.0, 1.0]),
        torch.tensor([False, False]),
    )
    micro = Batch(image, 5, torch.ones(2, 3), ["a", "b"], draw)
    module = StepDataModule(SlowSteps([0.0]), max_steps=1)
    (changed,) = module.on_after_batch_transfer([micro], 0)
    torch.testing.assert_close(changed.image, torch.cat([image[:1] ** 2, image[1:]]))


@pytest.mark.parametrize("wrong", [{"max_steps": 0}, {"max_steps": 1, "num_workers": -1}])
def test_impossible_numbers_are_refused(
    random_steps: Callable[[], Dataset[list[Batch]]], wrong: dict[str, int]
) -> None:
    with pytest.raises(ValueError, match="must"):
        StepDataModule(random_steps(), **wrong)
