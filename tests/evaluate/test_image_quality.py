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


def test_equals_the_metrics_of_monai() -> None:
    from monai.metrics.regression import PSNRMetric, SSIMMetric

    image = torch.rand(1, 13, 24, 28)
    prediction = (image + 0.1 * torch.randn_like(image)).clamp(0, 1)
    for dims, degree, ours, theirs in (
        (3, 0, (prediction, image), (prediction[None], image[None])),
        (2, 5, (prediction[:, :1], image[:, :1]), (prediction[:, :1], image[:, :1])),
    ):
        found = image_quality(*ours, degree, max_voxels=1000)
        assert found.psnr == pytest.approx(PSNRMetric(max_val=1)(*theirs).item(), abs=1e-4)
        metric = SSIMMetric(dims, data_range=1.0, win_size=11, kernel_sigma=1.5)
        assert found.ssim == pytest.approx(metric(*theirs).item(), abs=1e-5)
