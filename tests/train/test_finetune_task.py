"""Fine-tuning: what is trained how fast, what is kept, when it stops, and how it goes on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn

from spadnet.data.task_images import TaskImage
from spadnet.data.task_steps import LabelledBatch, Mixture, TaskAugment, TaskSteps
from spadnet.losses.targets import TargetLoss
from spadnet.models.classifier import AttentionClassifier
from spadnet.models.conv_net import SpadConvNet
from spadnet.models.low_rank import add_low_rank
from spadnet.models.segmentor import VitSegmentor
from spadnet.models.spad_unet import SpadUNet
from spadnet.models.tokenizer_segmentor import TokenizerSegmentor
from spadnet.models.vit import SpadViT
from spadnet.spacing import Spacing
from spadnet.train.average import update_average
from spadnet.train.datamodule import StepDataModule
from spadnet.train.finetune_task import FinetuneTask, freeze_encoder
from spadnet.train.keep_best import KeepBest
from spadnet.train.metrics_log import read_rows
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
    optim = OPTIM._replace(**{"ema": 0.9, **changes})
    loss = TargetLoss("classification")
    return FinetuneTask(model, loss, max_steps=max_steps, optim=optim)


def train(
    task: FinetuneTask,
    folder: Path,
    *,
    max_steps: int,
    best: KeepBest | None = None,
    steps: TaskSteps | None = None,
    **more: Any,
) -> FitResult:
    steps = TaskSteps(images(), batch_size=4) if steps is None else steps
    data = StepDataModule(cast(Any, steps), max_steps=max_steps)
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


def keep(
    values: Callable[[int], float], *, patience: int | None = None, from_start: bool = False
) -> tuple[KeepBest, list]:
    """Scores made up by their number; the list has the steps that were saved."""
    saved: list[int] = []
    count = iter(range(1000))
    best = KeepBest(
        lambda model: {"auc": values(next(count))},
        lambda model, step, scores: saved.append(step),
        chosen_by="auc",
        every_steps=2,
        patience=patience,
        from_start=from_start,
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


def test_a_start_is_scored_once_and_kept_where_nothing_is_better(tmp_path: Path) -> None:
    best, saved = keep(lambda i: -float(i), from_start=True)
    train(build(4), tmp_path, max_steps=4, best=best, save_every_steps=2)
    assert (saved, best.best_step, best.without_better) == ([0], 0, 2)
    other, later = keep(lambda i: -10.0 - i, from_start=True)
    train(build(6), tmp_path, max_steps=6, best=other, resume="auto")
    assert (later, other.best) == ([], {"auc": 0.0})
    assert other.without_better == 3  # after step 6: going on is no start


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


def test_scores_are_logged_at_their_own_steps_alone(tmp_path: Path) -> None:
    best, _ = keep(float)  # scored after steps 2, 4 and 5
    result = train(build(5), tmp_path, max_steps=5, best=best, log_every_steps=1)
    rows = read_rows(tmp_path / "metrics.csv")
    assert {row["step"]: row["val/auc"] for row in rows} == {
        "1": "",
        "2": "0.0",
        "3": "",
        "4": "1.0",
        "5": "2.0",
    }
    assert result.metrics["val/auc"] == 2.0


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


def test_statistics_are_averaged_with_the_weights_they_belong_to() -> None:
    model, averaged = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    with torch.no_grad():
        model.running_mean.fill_(1.0)
        model.num_batches_tracked.fill_(7)
    update_average(averaged, model, decay=0.99, step=10_000)
    torch.testing.assert_close(averaged.running_mean, torch.full((2,), 0.01))
    assert int(averaged.num_batches_tracked) == 7


def test_mixed_images_count_for_both_targets() -> None:
    task = build(1)
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    own, other = torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [1.0]])
    batch = LabelledBatch(torch.zeros(2, 1, 1, 8, 8), own, 5, torch.zeros(2, 3), ["a", "b"])
    plain = task.mixed_loss(logits, batch)
    assert torch.equal(plain, task.loss(logits, own))
    mixed = task.mixed_loss(logits, batch._replace(mixture=Mixture(0.75, other)))
    soft = torch.tensor([[0.75, 0.25], [0.0, 1.0]])
    torch.testing.assert_close(mixed, nn.functional.cross_entropy(logits, soft))


def test_micro_batches_add_up_to_the_whole(tmp_path: Path) -> None:
    states = []
    for micro in (None, 1, 3):
        torch.manual_seed(0)
        task = FinetuneTask(tiny_vit(), TargetLoss("classification"), max_steps=2)
        steps = TaskSteps(
            images(), batch_size=4, micro_batch=micro, augment=TaskAugment(intensity=None)
        )
        assert len(steps[0]) == {None: 1, 1: 4, 3: 2}[micro]
        train(task, tmp_path / str(micro), max_steps=2, steps=steps)
        states.append(task.model.state_dict())
    for state in states[1:]:
        for name, value in states[0].items():
            torch.testing.assert_close(state[name], value, atol=1e-5, rtol=1e-3, msg=name)


def test_what_is_scored_and_saved_is_the_average(tmp_path: Path) -> None:
    seen: list[nn.Module] = []
    best = KeepBest(
        lambda model: {"auc": float(len(seen))},
        lambda model, step, scores: seen.append(model),
        chosen_by="auc",
        every_steps=2,
    )
    task = build(2, ema=0.9)
    start = task.model.head.weight.detach().clone()  # type: ignore[union-attr, operator]
    train(task, tmp_path, max_steps=2, best=best)
    assert seen == [task.averaged]
    moved = [
        (model.head.weight - start).norm()  # type: ignore[union-attr, operator]
        for model in (task.averaged, task.model)
    ]
    assert 0 < moved[0] < moved[1]
    assert build(2, ema=0.0).final_model is not None


LAYERED: dict[str, tuple[Callable[[], nn.Module], str, list[str], str]] = {
    "unet": (
        lambda: SpadUNet(features=(4, 6, 8), deep_supervision=True),
        "encoder.stages.0.blocks.0.conv.weight",
        ["encoder.stages.1.blocks.0.conv.weight", "encoder.stages.2.blocks.0.conv.weight"],
        "decoder.heads.0.weight",
    ),
    "vit segmentor": (
        lambda: VitSegmentor(tiny_vit(), num_classes=2, widths=(4,) * 6),
        "pyramid.vit.patch_embed.proj.weight",
        [f"pyramid.vit.blocks.{i}.attn.proj.weight" for i in range(3)],
        "stem1.conv.weight",
    ),
    "tokenizer segmentor": (
        lambda: TokenizerSegmentor(encoder_widths=(8, 8, 8), num_classes=2, widths=(4,) * 5),
        "pyramid.encoder.stem.conv.weight",
        [f"pyramid.encoder.downs.{i}.conv.weight" for i in range(2)],
        "stem1.conv.weight",
    ),
    "conv": (
        lambda: SpadConvNet(num_classes=2, widths=(4, 8), first_stride=2),
        "stem.weight",
        [f"stages.{i}.conv1.weight" for i in range(2)],
        "head.weight",
    ),
    "low rank": (
        lambda: with_low_rank(tiny_vit()),
        "blocks.0.attn.qkv.parametrizations.weight.0.down",
        [f"blocks.{i}.attn.qkv.parametrizations.weight.0.down" for i in range(3)],
        "head.weight",
    ),
}


def with_low_rank(vit: SpadViT) -> SpadViT:
    add_low_rank(vit, rank=2)
    return vit


@pytest.mark.parametrize("kind", sorted(LAYERED))
def test_every_model_has_layers_to_decay_over(kind: str) -> None:
    make, stem, layers, head = LAYERED[kind]
    model = make()
    groups = scaled_groups(model, weight_decay=0.1, layer_decay=0.5)
    scale = {id(p): g["lr_scale"] for g in groups for p in g["params"]}
    assert len(scale) == sum(p.requires_grad for p in model.parameters())
    found = [scale[id(model.get_parameter(name))] for name in [stem, *layers, head]]
    assert found[-1] == 1
    assert found[1:-1] == [0.5**n for n in range(len(layers), 0, -1)]
    assert found[0] <= found[1]
