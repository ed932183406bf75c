"""How many floating point operations a micro-batch takes, and how many the machine can do.

Counted are the matrix products and convolutions of forward and backward, two operations for each
multiplication with its addition, of the networks as they are written: what gradient checkpointing
does twice counts once, and what faster forms of a convolution save is not taken off. Losses,
optimisers and perceptual networks do not count. A backward counts as two forwards, as is the
custom, but in fine-tuning, where it depends on what is trained.
"""

import copy
import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar, cast

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from spadnet.data.masking import num_visible
from spadnet.models.mae import MaskedAutoencoder
from spadnet.models.mim import MaskedImageModel
from spadnet.spacing import required_multiple
from spadnet.train.finetune_task import FinetuneTask
from spadnet.train.objectives import Objective, PixelObjective, TokenObjective
from spadnet.train.pretrain_task import PretrainTask
from spadnet.train.tokenizer_task import TokenizerTask

CountFlops = Callable[[Sequence[int], int, int], int]
M = TypeVar("M", bound=nn.Module)

_WITH_BACKWARD = 3  # forwards
_MEASURED_SECONDS = 0.15
_SIZE = {"cpu": 1024, "cuda": 8192}


def flop_counter(task: LightningModule) -> CountFlops | None:
    """Counter for micro-batches of a task, by shape [B, C, D, H, W], degree and number of views.

    It works on copies without memory, so call it before the model is split among ranks. The number
    of views is that of labelled synthetic images, 0 for other images.

    Args:
        task: A training task.

    Returns:
        The counter, None for a task that it does not know.
    """
    if isinstance(task, TokenizerTask):
        return _tokenizer_counter(task)
    if isinstance(task, PretrainTask):
        return _pretrain_counter(task)
    if isinstance(task, FinetuneTask):
        model = without_memory(task.model)
        channels = _channels(model)
        return lambda shape, degree, views: count(
            lambda: model(_image(shape, channels), degree), trained=model
        )
    return None


def _tokenizer_counter(task: TokenizerTask) -> CountFlops:
    tokenizer = without_memory(task.tokenizer)
    judge = None if task.discriminator is None else without_memory(task.discriminator)

    def operations(shape: Sequence[int], degree: int, views: int) -> int:
        channels = tokenizer.in_chans
        total = count(lambda: tokenizer(_image(shape, channels), degree)[0])
        if judge is not None:  # sees the image and its reconstruction
            total += 2 * count(lambda: judge(_image(shape, channels), degree))
        return _WITH_BACKWARD * total

    return operations


def _pretrain_counter(task: PretrainTask) -> CountFlops:
    parts: list[tuple[Objective, CountFlops]] = []
    for name, objective in task.objectives.items():
        model = without_memory(task.model_of(name))
        if isinstance(objective, TokenObjective) and isinstance(model, MaskedImageModel):
            parts.append((objective, _tokens_counter(objective, model)))
        elif isinstance(objective, PixelObjective) and isinstance(model, MaskedAutoencoder):
            parts.append((objective, _pixels_counter(objective, model)))
        else:
            parts.append((objective, _views_counter(model)))

    def operations(shape: Sequence[int], degree: int, views: int) -> int:
        asked = [counter for objective, counter in parts if objective.wants_labels == (views > 0)]
        return sum(counter(shape, degree, views) for counter in asked)

    return operations


def _tokens_counter(objective: TokenObjective, model: MaskedImageModel) -> CountFlops:
    tokenizer = without_memory(objective.tokenizer)

    def operations(shape: Sequence[int], degree: int, views: int) -> int:
        codes = tokenizer.quantizer.codebook_size

        def predict() -> Tensor:
            visible, length = _visible(shape, degree, objective.mask_ratio, tokenizer.stride)
            target = torch.empty(shape[0], length, codes, device="meta")
            return model(_image(shape, model.vit.in_chans), visible, target, degree).logits

        look = count(lambda: tokenizer.token_logits(_image(shape, tokenizer.in_chans), degree))
        return look + _WITH_BACKWARD * count(predict)

    return operations


def _pixels_counter(objective: PixelObjective, model: MaskedAutoencoder) -> CountFlops:
    def operations(shape: Sequence[int], degree: int, views: int) -> int:
        def predict() -> Tensor:
            stride = model.vit.patch_embed.patch_size
            visible, _ = _visible(shape, degree, objective.mask_ratio, stride)
            return model(_image(shape, model.vit.in_chans), visible, degree).predicted

        return _WITH_BACKWARD * count(predict)

    return operations


def _views_counter(model: nn.Module) -> CountFlops:
    def operations(shape: Sequence[int], degree: int, views: int) -> int:
        once = count(lambda: model(_image(shape, _channels(model)), degree))
        return _WITH_BACKWARD * views * once

    return operations


def _visible(
    shape: Sequence[int], degree: int, mask_ratio: float, stride: int
) -> tuple[Tensor, int]:
    """Positions [B, V] of visible tokens, without numbers, and the number of all tokens."""
    steps = required_multiple(degree, stride=stride)
    length = math.prod(size // step for size, step in zip(shape[2:], steps, strict=True))
    seen = num_visible(length, mask_ratio)
    return torch.empty(shape[0], seen, dtype=torch.int64, device="meta"), length


def _channels(model: nn.Module) -> int:
    return int(cast(Any, getattr(model, "vit", model)).in_chans)


def _image(shape: Sequence[int], channels: int) -> Tensor:
    return torch.empty(shape[0], channels, *shape[2:], device="meta")


def without_memory(module: M) -> M:
    """Copy a module without the numbers in it, in evaluation mode."""
    memo: dict[int, object] = {}
    for parameter in module.parameters():
        empty = torch.empty(parameter.shape, device="meta")
        memo[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
    for buffer in module.buffers():
        kind = torch.float32 if buffer.is_floating_point() else buffer.dtype
        memo[id(buffer)] = torch.empty(buffer.shape, dtype=kind, device="meta")
    return copy.deepcopy(module, memo).eval()


def count(
    forward: Callable[[], Tensor | Iterable[Tensor]], *, trained: nn.Module | None = None
) -> int:
    """Operations of a computation on tensors without memory, and of its backward.

    Args:
        forward: Computes one or several tensors.
        trained: Module that gradients are wanted for; None for the forward alone.
    """
    with FlopCounterMode(display=False) as mode, torch.set_grad_enabled(trained is not None):
        out = forward()
        if trained is not None:
            total = sum(part.sum() for part in ([out] if isinstance(out, Tensor) else out))
            wanted = [p for p in trained.parameters() if p.requires_grad]
            torch.autograd.grad(cast(Tensor, total), wanted, allow_unused=True)
    return int(mode.get_total_flops())


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Floating point operations per second of a large matrix product, the best of a few.

    Args:
        device: Where.
        dtype: Of the matrices.
    """
    size = _SIZE.get(device.type, 1024)
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(size, size, generator=generator).to(device, dtype)
    best, begin, runs = float("inf"), time.perf_counter(), 0
    while runs < 4 or time.perf_counter() - begin < _MEASURED_SECONDS:
        _wait(device)
        start = time.perf_counter()
        torch.mm(a, a)
        _wait(device)
        best = min(best, time.perf_counter() - start)
        runs += 1
    return 2 * size**3 / best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
