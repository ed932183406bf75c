"""Laws of the default perceptual loss."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from spadnet.losses.multiscale import MultiscalePerceptual, laplacian_pyramid

DEGREES = range(6)


def volume(degree: int) -> Tensor:
    """A small textured volume with a few sharp edges, [2, 1, D, 32, 32] in [0, 1]."""
    depth = max(32 >> degree, 1)
    x = F.avg_pool3d(torch.rand(2, 1, depth, 34, 34), (1, 3, 3), 1)
    x[..., 8:20, 8:20] += 0.5
    return (x / 1.5).clamp(0, 1)


def blur(x: Tensor, width: int) -> Tensor:
    """Blur in-plane with a box."""
    padding = (0, width // 2, width // 2)
    return F.avg_pool3d(x, (1, width, width), 1, padding, count_include_pad=False)


@pytest.mark.parametrize("degree", DEGREES)
def test_zero_for_identical_images_and_positive_for_any_other(degree: int) -> None:
    loss, x = MultiscalePerceptual(), volume(degree)
    assert loss(x, x, degree=degree).item() == 0
    one_pixel = x.clone()
    one_pixel[0, 0, 0, 3, 3] += 0.1
    for other in (one_pixel, x + 0.01, x.flip(-1), x * 0.9):
        assert loss(other, x, degree=degree).item() > 0


@pytest.mark.parametrize("degree", DEGREES)
def test_grows_with_blur(degree: int) -> None:
    loss, x = MultiscalePerceptual(), volume(degree)
    values = [loss(blur(x, width), x, degree=degree).item() for width in (1, 3, 5, 9, 17)]
    assert values == sorted(values)
    assert values[0] < values[1] < values[-1] < 2


def test_grows_with_noise() -> None:
    loss, x = MultiscalePerceptual(), volume(2)
    noise = torch.randn_like(x)
    values = [loss(x + std * noise, x, degree=2).item() for std in (0.0, 0.01, 0.03, 0.1)]
    assert values == sorted(values)


def test_detail_counts_more_where_contrast_is_low() -> None:
    loss = MultiscalePerceptual(num_bands=1)
    flat = torch.full((1, 1, 1, 32, 32), 0.5)
    busy = flat + 0.4 * torch.randn_like(flat).sign()
    detail = 0.02 * torch.randn_like(flat).sign()
    assert loss(flat + detail, flat, degree=5) > 3 * loss(busy + detail, busy, degree=5)


def test_no_axis_is_special_at_degree_zero() -> None:
    loss, x, y = MultiscalePerceptual(), torch.rand(1, 1, 16, 16, 16), torch.rand(1, 1, 16, 16, 16)
    plain = loss(x, y, degree=0)
    for order in ((0, 1, 4, 2, 3), (0, 1, 3, 4, 2), (0, 1, 2, 4, 3)):
        assert torch.allclose(plain, loss(x.permute(order), y.permute(order), degree=0), rtol=1e-5)


def test_slices_thicker_than_the_coarsest_pixels_are_compared_one_by_one() -> None:
    loss, x, y = MultiscalePerceptual(), torch.rand(1, 1, 6, 32, 32), torch.rand(1, 1, 6, 32, 32)
    together = loss(x, y, degree=5)
    one_by_one = [loss(x[:, :, [z]], y[:, :, [z]], degree=5) for z in range(6)]
    assert torch.allclose(together, torch.stack(one_by_one).mean(), rtol=1e-5)


@pytest.mark.parametrize("degree", DEGREES)
def test_depth_is_halved_only_when_pixels_are_as_large_as_slices_are_thick(degree: int) -> None:
    *_, rest = laplacian_pyramid(volume(degree), degree, num_bands=4)
    assert rest.shape[-3:] == (max(32 >> degree, 1) >> max(4 - degree, 0), 2, 2)


def test_gradient_reaches_the_reconstruction_and_descends() -> None:
    loss, y = MultiscalePerceptual(), volume(1)
    x = blur(y, 5).requires_grad_()
    before = loss(x, y, degree=1)
    (gradient,) = torch.autograd.grad(before, x)
    assert gradient.isfinite().all()
    assert loss(x - 10 * gradient, y, degree=1) < before


@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 1), (1, 3, 1, 5, 7), (1, 2, 3, 17, 9)])
def test_any_size_works(shape: tuple[int, ...]) -> None:
    loss, x = MultiscalePerceptual(), torch.rand(shape)
    assert loss(x, x, degree=1).item() == 0
    assert loss(x + 0.1, x, degree=1).item() == pytest.approx(0.1, rel=1e-3)


def test_float32_under_autocast() -> None:
    loss, x = MultiscalePerceptual(), volume(2)
    y = blur(x, 3)
    with torch.autocast("cpu", torch.bfloat16):
        inside = loss(y, x, degree=2)
    assert torch.equal(inside, loss(y, x, degree=2))


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="positive"):
        MultiscalePerceptual(num_bands=0)
