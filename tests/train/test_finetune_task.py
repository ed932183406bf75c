"""Fine-tuning: what is trained how fast, what is kept, when it stops, and how it goes on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn

from spadnet.data.task_images import TaskImage
from spadnet.data.task_steps import TaskSteps
from spadnet.losses.targets import TargetLoss
from spadnet.models.classifier import AttentionClassifier
from spadnet.models.conv_net import SpadConvNet
from spadnet.models.vit import SpadViT
from spadnet.spacing import Spacing
from spadnet.train.average import update_average
from spadnet.train.datamodule import StepDataModule
from spadnet.train.finetune_task import FinetuneTask, freeze_encoder
from spadnet.train.keep_best import KeepBest
from spadnet.train.optim import OptimSettings, scaled_groups
from spadnet.train.run import FitResult, fit

OPTIM = OptimSettings(lr=1e-2, warmup_steps=0, clip=1.0)


def images() -> list[TaskImage]:
    generator = torch.Generator().manual_seed(0)
    return [
        TaskImage(
            f"case{i}",
            (torch.rand(1, 1, 16, 16, generator=generator) * (0.4 + 0.6 * (i % 2))).half(),
            torch.tensor([float(i % 2)]),
            5,
            Spacing.planar(),
        )
        for i in range(12)
    ]


def build(max_steps: int, **changes: Any) -> FinetuneTask:
    torch.manual_seed(0)
    model = SpadConvNet(num_classes=2, widths=(4, 8), drop_rate=0.2)
    optim = OPTIM._replace(ema=0.9, **changes)
    loss = TargetLoss("classification")
    return FinetuneTask(model, loss, max_steps=max_steps, optim=optim)


def train(
    task: FinetuneTask, folder: Path, *, max_steps: int, best: KeepBest | None = None, **more: Any
) -> FitResult:
    data = StepDataModule(cast(Any, TaskSteps(images(), batch_size=4)), max_steps=max_steps)
    return fit(
        task,
        data,
        folder,
        accelerator="cpu",
        precision="32-true",
        tensorboard=False,
        show_progress=False,
        callbacks=[] if best is None else [best],
        **more,
    )


def keep(values: Callable[[int], float], *, patience: int | None = None) -> tuple[KeepBest, list]:
    """Scores made up by their number; the list has the steps that were saved."""
    saved: list[int] = []
    count = iter(range(1000))
    best = KeepBest(
        lambda model: {"auc": values(next(count))},
        lambda model, step, scores: saved.append(step),
        chosen_by="auc",
        every_steps=2,
        patience=patience,
    )
    return best, saved


def test_a_resumed_training_ends_where_an_undisturbed_one_does(tmp_path: Path) -> None:
    whole = build(6)
    train(whole, tmp_path / "whole", max_steps=6)
    first = build(6)
    best, saved = keep(lambda i: -float(i))
    train(first, tmp_path / "cut", max_steps=4, best=best, save_every_steps=2)
    again = build(6)
    other, later = keep(lambda i: -10.0 - i)
    train(again, tmp_path / "cut", max_steps=6, best=other, resume="auto")
    assert (saved, later) == ([2], [])  # what was best before is remembered
    assert (other.best, other.best_step) == ({"auc": 0.0}, 2)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_stops_when_nothing_improves_and_stays_stopped(tmp_path: Path) -> None:
    best, saved = keep(lambda i: float(i == 1), patience=2)
    result = train(build(40), tmp_path, max_steps=40, best=best)
    assert (result.step, saved) == (8, [2, 4])
    assert result.stopped_by is None
    again, later = keep(lambda i: 1.0, patience=2)
    result = train(build(40), tmp_path, max_steps=40, best=again, resume="auto")
    assert (result.step, later) == (8, [])


def test_a_score_that_does_not_exist_is_worse_than_any(tmp_path: Path) -> None:
    best, saved = keep(lambda i: float("nan") if i == 0 else -1.0)
    train(build(6), tmp_path, max_steps=6, best=best)
    assert (saved, best.best) == ([2, 4], {"auc": -1.0})


def test_the_last_step_is_scored_too(tmp_path: Path) -> None:
    best, saved = keep(float)
    train(build(3), tmp_path, max_steps=3, best=best)
    assert saved == [2, 3]


def tiny_vit() -> SpadViT:
    return SpadViT(
        in_chans=1, num_classes=2, embed_dim=12, depth=3, num_heads=1, pos_grid=(1, 2, 2)
    )


def test_lower_layers_learn_slower() -> None:
    vit = tiny_vit()
    groups = scaled_groups(vit, weight_decay=0.1, layer_decay=0.5)
    scale = {id(p): g["lr_scale"] for g in groups for p in g["params"]}
    decay = {id(p): g["weight_decay"] for g in groups for p in g["params"]}
    assert len(scale) == sum(1 for _ in vit.parameters())
    assert scale[id(vit.head.weight)] == 1
    blocks = [scale[id(block.attn.proj.weight)] for block in vit.blocks]  # type: ignore[union-attr]
    assert blocks == [0.125, 0.25, 0.5]
    assert scale[id(vit.patch_embed.proj.weight)] == scale[id(vit.cls_token)] == 0.0625
    assert decay[id(vit.cls_token)] == decay[id(vit.head.bias)] == 0
    assert decay[id(vit.head.weight)] == 0.1
    inside = AttentionClassifier(tiny_vit(), num_classes=2)
    scale = {
        id(p): g["lr_scale"]
        for g in scaled_groups(inside, weight_decay=0.1, layer_decay=0.5)
        for p in g["params"]
    }
    assert scale[id(inside.pool.query)] == 1 > scale[id(inside.vit.cls_token)]


def test_a_frozen_encoder_stays_as_it_is(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = AttentionClassifier(tiny_vit(), num_classes=2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    task = FinetuneTask(model, TargetLoss("classification"), max_steps=2, optim=OPTIM, freeze=True)
    train(task, tmp_path, max_steps=2)
    changed = {n for n, value in model.state_dict().items() if not torch.equal(value, before[n])}
    assert changed
    assert not any(name.startswith("vit.") for name in changed)
    frozen = SpadConvNet(num_classes=0, widths=(4,))
    freeze_encoder(frozen)
    with pytest.raises(ValueError, match="nothing is left to train"):
        FinetuneTask(frozen, nn.Identity(), max_steps=1)


def test_average_follows_quickly_at_first_and_slowly_later() -> None:
    model, averaged = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    for step, share in ((0, 0.9), (10_000, 0.01)):
        with torch.no_grad():
            model.weight.fill_(1.0)
            averaged.weight.zero_()
        update_average(averaged, model, decay=0.99, step=step)
        assert averaged.weight.item() == pytest.approx(share)
