"""Operations are those of the networks as written, once each, and counting needs no memory."""

from collections.abc import Callable
from typing import cast

import pytest
import torch
from lightning import LightningModule
from torch import nn

from spadnet.losses.targets import TargetLoss
from spadnet.models.tokenizer import Tokenizer
from spadnet.models.vit import SpadViT
from spadnet.train.finetune_task import FinetuneTask
from spadnet.train.flops import count, flop_counter, matmul_peak, without_memory
from spadnet.train.step_task import StepTask

BuildTask = Callable[[int], LightningModule]


def test_a_linear_layer_takes_what_its_formula_says() -> None:
    layers = without_memory(nn.Sequential(nn.Linear(30, 40), nn.Linear(40, 50)))
    x = torch.empty(7, 30, device="meta")
    forward = 2 * 7 * (30 * 40 + 40 * 50)
    assert count(lambda: layers(x)) == forward
    # Gradients of both weights, and of what lies between the layers.
    assert count(lambda: layers(x), trained=layers) == 2 * forward + 2 * 7 * 40 * 50


def test_a_backward_takes_about_two_forwards() -> None:
    widths = (8, 8, 16)
    tokenizer = without_memory(Tokenizer(in_chans=1, widths=widths, codebook_size=8))
    x = torch.empty(2, 1, 16, 32, 32, device="meta")
    forward = count(lambda: tokenizer(x, 0)[0])
    whole = count(lambda: tokenizer(x, 0)[0], trained=tokenizer)
    assert whole == pytest.approx(3 * forward, rel=0.1)


def test_every_further_sample_takes_as_much(build_task: BuildTask) -> None:
    operations = flop_counter(build_task(4))
    assert operations is not None
    for shape, degree in (((1, 32, 32), 5), ((2, 32, 32), 3)):
        one, two, three = (operations((n, 1, *shape), degree, 0) for n in (1, 2, 3))
        assert three - two == two - one > 0


def test_thick_slices_take_fewer_operations(build_task: BuildTask) -> None:
    operations = flop_counter(build_task(4))
    assert operations is not None
    assert operations((1, 1, 1, 32, 32), 5, 0) < operations((1, 1, 16, 32, 32), 0, 0)


def test_checkpointing_and_modes_change_nothing(build_task: BuildTask) -> None:
    task = build_task(4)
    before = {name: value.clone() for name, value in task.state_dict().items()}
    task.train()
    state = torch.get_rng_state()
    operations = flop_counter(task)
    assert operations is not None
    plain = operations((2, 1, 2, 32, 32), 3, 0)
    vits = [module for module in task.modules() if isinstance(module, SpadViT)]
    for vit in vits:
        vit.set_grad_checkpointing()
    again = flop_counter(task)
    assert again is not None
    assert again((2, 1, 2, 32, 32), 3, 0) == plain
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in task.state_dict().items())
    assert all(parameter.grad is None for parameter in task.parameters())
    assert all(module.training for module in cast(StepTask, task).trained.modules())


def test_a_frozen_encoder_takes_less() -> None:
    def operations(freeze: bool) -> int:
        vit = SpadViT(in_chans=1, embed_dim=24, depth=2, num_heads=2, num_classes=2)
        loss = TargetLoss("classification")
        counter = flop_counter(FinetuneTask(vit, loss, max_steps=2, freeze=freeze))
        assert counter is not None
        return counter((1, 1, 1, 32, 32), 5, 0)

    assert operations(freeze=True) < 0.5 * operations(freeze=False)


def test_an_unknown_task_is_not_counted() -> None:
    assert flop_counter(LightningModule()) is None


def test_peak_is_a_rate() -> None:
    assert matmul_peak(torch.device("cpu"), torch.float32) > 1e8
