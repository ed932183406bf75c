"""Figures of stage 1 on hand-made cases whose answers are known."""

import math
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from spadnet.evaluate.held_out import HeldOut
from spadnet.evaluate.tokenizer_figures import CodeFigures, psnr, ssim, tokenizer_figures
from spadnet.models.quantizer import QuantizerOutput
from spadnet.models.tokenizer import Tokenizer
from spadnet.spacing import Spacing

CODES = 8


class Scripted(nn.Module):
    """Stands in for a tokenizer: paints what it is told to and codes each block by its mean."""

    stride = 16

    def __init__(self, reconstruct: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.reconstruct = reconstruct

    def token_logits(self, x: Tensor, degree: int) -> Tensor:
        return self.forward(x, degree)[1].logits.flatten(1, 3)

    def forward(self, x: Tensor, degree: int) -> tuple[Tensor, QuantizerOutput]:
        step = (max(16 >> degree, 1), 16, 16)
        means = nn.functional.avg_pool3d(x, step)
        painted = means
        for axis, size in enumerate(step, start=2):
            painted = painted.repeat_interleave(size, axis)
        index = (means[:, 0] * CODES).long().clamp(0, CODES - 1)
        logits = 200.0 * nn.functional.one_hot(index, CODES)
        # Past the range of intensities: what lies outside [0, 1] is clamped before it is compared.
        copy = torch.where(x == 1, 3.0, x)
        return copy if self.reconstruct == "copy" else painted, QuantizerOutput(
            means, logits, index, {}
        )


def scripted(reconstruct: str) -> Tokenizer:
    return cast(Tokenizer, Scripted(reconstruct))


def in_blocks(values: list[list[float]]) -> HeldOut:
    """2D image whose blocks of 16 x 16 pixels have the given values."""
    image = torch.tensor(values).repeat_interleave(16, 0).repeat_interleave(16, 1)
    return HeldOut("blocks", image[None, None, None], Spacing.planar(), 5)


def test_psnr_of_a_known_error_and_of_a_copy() -> None:
    image = torch.full((1, 1, 1, 16, 16), 0.5)
    assert psnr(image + 0.1, image) == pytest.approx(20, abs=1e-4)
    assert psnr(image, image) == pytest.approx(100)


@pytest.mark.parametrize(("degree", "depth"), [(0, 16), (0, 48), (2, 4), (3, 2), (5, 1)])
def test_ssim_of_a_copy_is_one_and_falls_with_noise(degree: int, depth: int) -> None:
    image = torch.rand(1, 1, depth, 32, 32)
    noise = torch.randn_like(image)
    values = [ssim(image + level * noise, image, degree) for level in (0.0, 0.1, 0.5)]
    assert values[0] == pytest.approx(1, abs=1e-4)
    assert values[0] > values[1] > values[2]


@pytest.mark.parametrize(
    ("degree", "depth", "window"),
    [(0, 16, 11), (0, 8, 7), (1, 8, 5), (2, 4, 3), (3, 4, 1), (5, 1, 1)],
)
def test_ssim_equals_that_of_monai(degree: int, depth: int, window: int) -> None:
    from monai.metrics.regression import compute_ssim_and_cs

    image = torch.rand(1, 2, depth, 20, 32)
    other = image + 0.2 * torch.randn_like(image)
    sigmas = [1.5 / 2**degree, 1.5, 1.5]
    expected = compute_ssim_and_cs(other, image, 3, [window, 11, 11], sigmas)[0].mean().item()
    assert ssim(other, image, degree) == pytest.approx(expected, abs=1e-5)


def test_ssim_of_thick_slices_is_the_mean_over_slices() -> None:
    image, other = torch.rand(2, 1, 1, 4, 32, 32)
    slices = [ssim(other[:, :, [z]], image[:, :, [z]], 5) for z in range(4)]
    assert ssim(other, image, 4) == pytest.approx(sum(slices) / 4, abs=1e-5)


def test_block_means_gain_nothing_and_a_copy_gains_all(images: list[HeldOut]) -> None:
    same = tokenizer_figures(scripted("blocks"), images)
    assert [figure.psnr_gain for figure in same.images] == pytest.approx([0.0] * 3, abs=1e-9)
    for figure in same.images:
        assert figure.ssim == pytest.approx(figure.ssim_blocks, abs=1e-6)
    copy = tokenizer_figures(scripted("copy"), images)
    for figure in copy.images:
        assert figure.psnr == pytest.approx(100)
        assert figure.ssim == pytest.approx(1, abs=1e-4)
        assert figure.psnr_gain == pytest.approx(100 - figure.psnr_blocks)


def test_reconstruction_is_clamped_before_it_is_compared() -> None:
    image = in_blocks([[1.0, 0.0], [0.5, 1.0]])
    assert tokenizer_figures(scripted("copy"), [image]).images[0].psnr == pytest.approx(100)


def test_use_of_codes_of_a_known_image() -> None:
    image = in_blocks([[0.05, 0.3], [0.55, 0.8]])  # codes 0, 2, 4, 6
    other = in_blocks([[0.05, 0.05]])
    figures = tokenizer_figures(scripted("copy"), [image, other])
    assert figures.codes.histogram.tolist() == [3, 0, 1, 0, 1, 0, 1, 0]
    assert figures.codes.codes_used == 4
    shares = torch.tensor([3, 1, 1, 1]) / 6
    entropy = torch.special.entr(shares).sum().item()
    assert figures.codes.perplexity == pytest.approx(math.exp(entropy))
    assert figures.codes.mutual_information == pytest.approx(entropy)  # one-hot: all is told
    assert figures.codes.mean_entropy == pytest.approx(0, abs=1e-9)
    assert list(figures.codes_by_degree) == [5]


def test_codes_that_say_nothing_have_no_mutual_information() -> None:
    codes = CodeFigures(torch.ones(CODES), entropy_of_mean=2.0, mean_entropy=2.0)
    assert codes.mutual_information == 0
    assert codes.perplexity == pytest.approx(CODES)


def test_figures_leave_the_mode_of_the_model(images: list[HeldOut], tokenizer: Tokenizer) -> None:
    tokenizer_figures(tokenizer, images)
    assert tokenizer.training
