"""Comparing slices at a time gives what comparing the whole gives."""

import pytest
import torch

from spadnet.evaluate.image_quality import image_quality
from spadnet.evaluate.tokenizer_figures import psnr, ssim


@pytest.mark.parametrize("degree", [0, 1, 2, 5])
@pytest.mark.parametrize("depth", [1, 6, 31])
@pytest.mark.parametrize("max_voxels", [1, 3000, 1 << 22])
def test_equals_the_whole(degree: int, depth: int, max_voxels: int) -> None:
    image = torch.rand(2, depth, 20, 24)
    prediction = (image + 0.2 * torch.randn_like(image)).clamp(0, 1)
    found = image_quality(prediction, image, degree, max_voxels=max_voxels)
    assert found.psnr == pytest.approx(psnr(prediction, image))
    assert found.ssim == pytest.approx(ssim(prediction[None], image[None], degree), abs=1e-5)


def test_perfect_copy() -> None:
    image = torch.rand(1, 4, 16, 16)
    assert image_quality(image, image, 2) == (pytest.approx(100), pytest.approx(1))
