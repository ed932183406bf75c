"""Figures of stage 2 on hand-made cases whose answers are known."""

import math
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from spadnet.evaluate.held_out import HeldOut
from spadnet.evaluate.mim_figures import MimFigures, mim_figures
from spadnet.losses.mim import constant_baseline, own_mean_baseline
from spadnet.models.mim import MaskedImageModel, MimOutput, complement_index, gather_tokens
from spadnet.models.tokenizer import Tokenizer

CODES = 8


class Constant(nn.Module):
    """Stands in for a model: predicts one distribution everywhere, or the target itself."""

    def __init__(self, probs: Tensor | None) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.zeros(1))
        self.vit = SimpleNamespace(in_chans=1)
        self.probs = probs
        self.targets: list[Tensor] = []

    def forward(self, x: Tensor, visible_index: Tensor, target: Tensor, degree: int) -> MimOutput:
        masked = complement_index(visible_index, target.shape[1])
        target = gather_tokens(target, masked)
        self.targets.append(target.softmax(-1))
        logits = target if self.probs is None else self.probs.log().expand_as(target)
        return MimOutput(logits, target, masked)


def constant(probs: Tensor | None) -> MaskedImageModel:
    return cast(MaskedImageModel, Constant(probs))


def measure(
    model: MaskedImageModel,
    tokenizer: Tokenizer,
    images: list[HeldOut],
    *,
    num_masks: int = 4,
    seed: int = 0,
) -> MimFigures:
    return mim_figures(
        model,
        tokenizer,
        images,
        window=(2, 3, 3),
        mask_ratio=0.55,
        num_masks=num_masks,
        seed=seed,
    )


def test_the_best_constant_gains_exactly_nothing(
    images: list[HeldOut], tokenizer: Tokenizer
) -> None:
    watcher = constant(None)
    measure(watcher, tokenizer, images)
    targets = [batch.flatten(0, 1) for batch in cast(Constant, watcher).targets]
    mean = torch.cat(targets).double().mean(0).float()
    figures = measure(constant(mean), tokenizer, images)
    assert figures.pooled.gain == pytest.approx(0, abs=1e-6)
    assert figures.pooled.own_gain <= 1e-6
    uniform = measure(constant(torch.full((CODES,), 1 / CODES)), tokenizer, images)
    assert uniform.pooled.loss == pytest.approx(math.log(CODES), abs=1e-5)
    assert uniform.pooled.gain < 0
    for score in figures.images:  # an image's constant is the pooled mean
        assert score.loss == pytest.approx(score.constant, abs=1e-5)
        assert score.own <= score.constant


def test_a_perfect_prediction_reaches_the_entropy_of_the_targets(
    images: list[HeldOut], tokenizer: Tokenizer
) -> None:
    figures = measure(constant(None), tokenizer, images)
    for score in [figures.pooled, *figures.images, *figures.by_degree.values()]:
        assert score.loss == pytest.approx(score.target_entropy, abs=1e-5)
        assert score.target_entropy <= score.own <= score.constant + 1e-9


def test_baselines_are_those_of_the_loss_on_the_same_positions(
    images: list[HeldOut], tokenizer: Tokenizer
) -> None:
    per_image = []
    for image in images:
        watcher = constant(None)
        measure(watcher, tokenizer, [image])
        per_image.append(
            torch.cat([batch.flatten(0, 1) for batch in cast(Constant, watcher).targets])
        )
    # Masks depend on the place in the list: compare images one by one, then a pool of one degree.
    for image, targets in zip(images, per_image, strict=True):
        score = measure(constant(None), tokenizer, [image])
        assert score.pooled.num_positions == len(targets)
        assert score.pooled.own == pytest.approx(own_mean_baseline([targets]).item(), abs=1e-6)
        assert score.pooled.constant == pytest.approx(constant_baseline(targets).item(), abs=1e-6)
        assert score.by_degree[image.degree] == score.pooled


def test_pools_weigh_by_positions_and_degrees_have_their_own_best_constant(
    images: list[HeldOut], tokenizer: Tokenizer, model: MaskedImageModel
) -> None:
    figures = measure(model, tokenizer, images)
    total = sum(score.num_positions for score in figures.images)
    assert figures.pooled.num_positions == total
    for field in ("loss", "own", "constant"):
        mean = sum(getattr(s, field) * s.num_positions for s in figures.images) / total
        assert getattr(figures.pooled, field) == pytest.approx(mean, abs=1e-6)
    assert list(figures.by_degree) == [2, 5]
    for degree, score in figures.by_degree.items():
        of_degree = [s for s, i in zip(figures.images, images, strict=True) if i.degree == degree]
        count = sum(s.num_positions for s in of_degree)
        mean = sum(s.constant * s.num_positions for s in of_degree) / count
        assert score.constant <= mean + 1e-9


def test_masks_are_a_function_of_the_seed(
    images: list[HeldOut], tokenizer: Tokenizer, model: MaskedImageModel
) -> None:
    first, again, other = (measure(model, tokenizer, images, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first.pooled.loss != other.pooled.loss
    more = measure(model, tokenizer, images, num_masks=8)
    assert more.pooled.num_positions == 2 * first.pooled.num_positions


def test_figures_leave_the_mode_of_the_models(
    images: list[HeldOut], tokenizer: Tokenizer, model: MaskedImageModel
) -> None:
    measure(model, tokenizer, images)
    assert tokenizer.training
    assert model.training
