"""Pre-training is the loop one would write by hand, alone and in a sum, and resumes exactly."""

import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.utils.data import Dataset

from spadnet.data.batch import Batch
from spadnet.data.masking import random_visible_index
from spadnet.losses.mim import soft_cross_entropy
from spadnet.train.checkpoint import find_last, finished_steps, read_checkpoint
from spadnet.train.metrics_log import read_rows
from spadnet.train.objectives import Draw, PixelObjective, TokenObjective, match_channels
from spadnet.train.optim import build_adamw, cosine_lr, set_lr
from spadnet.train.pretrain_task import Part, PretrainTask
from spadnet.train.run import FitResult

BuildMixed = Callable[[int], PretrainTask]
Fit = Callable[..., FitResult]
Steps = Dataset[list[Batch]]
NUM = 3


def by_hand(task: PretrainTask, add: Callable[[int, Sequence[Batch]], None], data: Steps) -> None:
    """Train a task's model: ``add`` gradients, clip, step."""
    optimizer = build_adamw(task.model, settings=task.optim)
    for step in range(NUM):
        set_lr(optimizer, cosine_lr(step, max_steps=NUM, settings=task.optim))
        add(step, data[step])
        assert task.optim.clip is not None
        nn.utils.clip_grad_norm_(task.model.parameters(), task.optim.clip)
        optimizer.step()
        optimizer.zero_grad()


def assert_same_weights(ours: nn.Module, theirs: nn.Module) -> None:
    """Assert equality to the bit."""
    state, other = ours.state_dict(), theirs.state_dict()
    assert state.keys() == other.keys()
    for name in state:
        assert torch.equal(state[name], other[name]), name


def test_tokens_alone_are_stage_2_to_the_bit(
    build_mixed: BuildMixed, mixed_steps: Steps, quick_fit: Fit, tmp_path: Path
) -> None:
    def alone() -> PretrainTask:
        mixed = build_mixed(NUM)
        part = Part(mixed.model_of("tokens"), mixed.objectives["tokens"])
        return PretrainTask({"tokens": part}, max_steps=NUM, optim=mixed.optim)

    task, hand = alone(), alone()
    objective = hand.objectives["tokens"]
    assert isinstance(objective, TokenObjective)

    def add(step: int, batch: Sequence[Batch]) -> None:
        masks = torch.Generator().manual_seed(step)
        images = [micro for micro in batch if micro.labels is None]
        for micro in images:
            target = objective.target(micro.image, micro.degree)
            batch_size, length, _ = target.shape
            index = random_visible_index(batch_size, length, mask_ratio=0.55, generator=masks)
            logits, wanted, _ = hand.model(micro.image, index, target, micro.degree)
            (soft_cross_entropy(logits, wanted, from_logits=True) / len(images)).backward()

    quick_fit(task, tmp_path, max_steps=NUM, dataset=mixed_steps, precision="32-true")
    by_hand(hand, add, mixed_steps)
    assert_same_weights(task.model, hand.model)


def test_a_sum_adds_weighted_gradients_of_means(
    build_mixed: BuildMixed, mixed_steps: Steps, quick_fit: Fit, tmp_path: Path
) -> None:
    task, hand = build_mixed(NUM), build_mixed(NUM)
    sums = []

    def add(step: int, batch: Sequence[Batch]) -> None:
        total = 0.0
        for number, (name, weight) in enumerate(
            {"tokens": 1.0, "pixels": 0.5, "disentangle": 0.25}.items()
        ):
            draw = Draw(torch.Generator().manual_seed(step + (number << 40)))
            own = [m for m in batch if (m.labels is not None) == (name == "disentangle")]
            for micro in own:
                loss = hand.objectives[name].loss(hand.model_of(name), micro, draw)
                (weight * loss / len(own)).backward()
                total += weight * float(loss.detach()) / len(own)
        sums.append(total)

    quick_fit(task, tmp_path, max_steps=NUM, dataset=mixed_steps, precision="32-true")
    by_hand(hand, add, mixed_steps)
    assert_same_weights(task.model, hand.model)
    rows = read_rows(tmp_path / "metrics.csv")
    assert [float(row["train/loss"]) for row in rows] == pytest.approx(sums)
    for row in rows:
        parts = [float(row[f"train/{name}"]) for name in ("tokens", "pixels", "disentangle")]
        assert parts[0] + 0.5 * parts[1] + 0.25 * parts[2] == pytest.approx(
            float(row["train/loss"])
        )


class Interrupt(Callback):
    """Ctrl-C during the third step."""

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if finished_steps(trainer) == 2:
            signal.raise_signal(signal.SIGINT)


def test_a_sum_resumes_to_the_bit(
    build_mixed: BuildMixed, mixed_steps: Steps, quick_fit: Fit, tmp_path: Path
) -> None:
    def run(name: str, **options: object) -> FitResult:
        task = build_mixed(5)
        return quick_fit(task, tmp_path / name, max_steps=5, dataset=mixed_steps, **options)

    run("whole")
    assert run("broken", callbacks=[Interrupt()]).step == 3
    assert run("broken", resume="auto").step == 5
    files = [find_last(tmp_path / name) for name in ("whole", "broken")]
    whole, broken = (read_checkpoint(file)["state_dict"] for file in files if file is not None)
    assert whole.keys() == broken.keys()
    assert all(torch.equal(whole[name], broken[name]) for name in whole)


@pytest.mark.parametrize("name", ["tokens", "pixels", "disentangle"])
def test_bfloat16_is_close(name: str, build_mixed: BuildMixed, mixed_steps: Steps) -> None:
    task = build_mixed(1)
    objective, model = task.objectives[name], task.model_of(name)
    for micro in mixed_steps[0]:
        if (micro.labels is not None) != objective.wants_labels:
            continue
        plain = objective.loss(model, micro, Draw(torch.Generator().manual_seed(0)))
        with torch.autocast("cpu", torch.bfloat16):
            low = objective.loss(model, micro, Draw(torch.Generator().manual_seed(0)))
        assert low.dtype == torch.float32
        torch.testing.assert_close(low, plain, rtol=0.02, atol=0.02)


def test_a_step_without_what_an_objective_needs_is_an_error(
    build_mixed: BuildMixed, random_steps: Callable[[], Steps], quick_fit: Fit, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="holds no micro-batch for the objective disentangle"):
        quick_fit(build_mixed(1), tmp_path, max_steps=1)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("inf"), float("nan")])
def test_weights_must_be_positive(weight: float) -> None:
    with pytest.raises(ValueError, match=f"the weight of pixels must be positive, got {weight}"):
        PretrainTask({"pixels": Part(nn.Identity(), PixelObjective(), weight)}, max_steps=1)
    with pytest.raises(ValueError, match="needs an objective"):
        PretrainTask({}, max_steps=1)


def test_grey_images_are_repeated_and_nothing_else() -> None:
    grey, colour = torch.rand(2, 1, 1, 4, 4), torch.rand(2, 3, 1, 4, 4)
    assert torch.equal(match_channels(grey, 3)[:, 2:], grey)
    assert match_channels(colour, 3) is colour
    with pytest.raises(ValueError, match="the model takes 1 channels, the images have 3"):
        match_channels(colour, 1)
