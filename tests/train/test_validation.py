"""Looking at held-out images leaves a training as it is, bit for bit, and shows what it saw."""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from lightning import LightningModule
from torch import nn

from spadnet.train.checkpoint import find_last, read_checkpoint
from spadnet.train.meters import Meters
from spadnet.train.metrics_log import read_rows
from spadnet.train.run import FitResult
from spadnet.train.validation import Judge, Picture, Scores, Validate, newest_panels, undisturbed

BuildTask = Callable[[int], LightningModule]
Fit = Callable[..., FitResult]


class Restless:
    """Judges as badly behaved as can be: they draw from every global generator."""

    def __init__(self) -> None:
        self.models: list[nn.Module] = []

    def score(self, model: nn.Module) -> Scores:
        assert not any(part.training for part in model.modules())
        assert not torch.is_grad_enabled()
        self.models.append(model)
        drawn = torch.rand(3).sum() + random.random() + np.random.rand()
        return Scores({"drawn": float(drawn) * 0 + len(self.models)}, torch.tensor([3, 0, 1]))

    def draw(self, model: nn.Module) -> Iterator[Picture]:
        torch.rand(1)
        for name in ("a b/c.nii.gz", "d"):
            yield Picture(name, np.full((4, 6, 3), 7, np.uint8))

    def judge(self) -> Judge:
        return Judge(self.score, self.draw)


def state(folder: Path) -> dict[str, Any]:
    last = find_last(folder)
    assert last is not None
    return read_checkpoint(last)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def test_training_is_the_same_with_and_without(
    build_task: BuildTask, quick_fit: Fit, tmp_path: Path
) -> None:
    quick_fit(build_task(6), tmp_path / "alone", max_steps=6)
    folder = tmp_path / "watched"
    restless = Restless()
    task = build_task(6)
    watch = Validate(restless.judge(), folder, every_steps=2, panels_every_steps=3)
    meters = Meters(folder, codebook_size=8, aside=[watch])
    result = quick_fit(
        task, folder, max_steps=6, callbacks=[meters, watch], tensorboard=True, log_every_steps=2
    )
    alone, watched = state(tmp_path / "alone"), state(folder)
    for part in ("state_dict", "optimizer_states"):
        assert same(alone[part], watched[part])
    assert restless.models == [task.final_model] * 3
    assert result.metrics["val/drawn"] == 3
    assert watch.seconds_aside > 0
    rows = read_rows(folder / "metrics.csv")
    assert [row["val/drawn"] for row in rows if row["val/drawn"]] == ["1.0", "2.0", "3.0"]
    assert json.loads((folder / "code_use.json").read_text()) == {"step": 6, "counts": [3, 0, 1]}
    step, files = newest_panels(folder)
    assert step == 6
    assert [file.name for file in files] == ["00-a_b_c.nii.gz.png", "01-d.png"]
    assert PIL.Image.open(files[0]).size == (6, 4)
    assert sorted(path.name for path in (folder / "panels").iterdir()) == [
        "step-00000003",
        "step-00000006",
    ]
    assert same_events(folder)


def same_events(folder: Path) -> bool:
    """Whether TensorBoard has the pictures and the use of the codes."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    return (
        sorted(tags["images"]) == ["panels/00-a_b_c.nii.gz", "panels/01-d"]
        and tags["histograms"] == ["val/code_use"]
        and {"val/drawn", "speed/images_per_second", "train/lr"} <= set(tags["scalars"])
    )


def test_modes_and_random_states_come_back_after_a_failure() -> None:
    model = nn.Sequential(nn.Dropout(), nn.Dropout().eval())
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()

    def fail() -> None:
        with undisturbed(model, device=torch.device("cpu")):
            assert not model[0].training
            torch.rand(1), random.random(), np.random.rand()
            raise RuntimeError("judge")

    with pytest.raises(RuntimeError, match="judge"):
        fail()
    assert [part.training for part in model] == [True, False]
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]


def test_pictures_can_be_left_out(build_task: BuildTask, quick_fit: Fit, tmp_path: Path) -> None:
    watch = Validate(Restless().judge(), tmp_path, every_steps=5, panels_every_steps=None)
    quick_fit(build_task(2), tmp_path, max_steps=2, callbacks=[watch])
    assert watch.latest == {"val/drawn": 1.0}  # the end counts, whatever the interval
    assert newest_panels(tmp_path) == (0, [])


def test_intervals_must_be_positive(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="panels_every_steps must be positive, got 0"):
        Validate(Restless().judge(), tmp_path, every_steps=1, panels_every_steps=0)
