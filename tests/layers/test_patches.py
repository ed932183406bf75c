"""Products over patches equal the convolutions that they stand for."""

import pytest
import torch
import torch.nn.functional as F

from spadnet.layers.patches import patch_conv3d, patch_conv_transpose3d

KERNELS = [(1, 1, 1), (1, 2, 2), (2, 2, 2), (1, 4, 4), (2, 4, 4), (4, 4, 4)]


@pytest.mark.parametrize("channels", [1, 3, 6])
@pytest.mark.parametrize("kernel", KERNELS)
def test_patches_equal_the_convolution(kernel: tuple[int, int, int], channels: int) -> None:
    x = torch.randn(2, channels, 2 * kernel[0], 2 * kernel[1], 3 * kernel[2])
    weight, bias = torch.randn(5, channels, *kernel), torch.randn(5)
    expected = F.conv3d(x, weight, bias, stride=kernel)
    torch.testing.assert_close(patch_conv3d(x, weight, bias), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3, 6])
@pytest.mark.parametrize("kernel", KERNELS)
def test_unpatching_equals_the_transposed_convolution(
    kernel: tuple[int, int, int], channels: int
) -> None:
    x = torch.randn(2, 5, 2, 2, 3)
    weight, bias = torch.randn(5, channels, *kernel), torch.randn(channels)
    for shift in (bias, None):
        expected = F.conv_transpose3d(x, weight, shift, stride=kernel)
        actual = patch_conv_transpose3d(x, weight, shift)
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("function", [patch_conv3d, patch_conv_transpose3d])
@pytest.mark.parametrize("channels", [2, 6])
def test_gradients_are_right(function: object, channels: int) -> None:
    x = torch.randn(1, channels, 2, 4, 4, dtype=torch.double, requires_grad=True)
    weight = torch.randn(channels, channels, 1, 2, 2, dtype=torch.double, requires_grad=True)
    bias = torch.randn(channels, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(function, (x, weight, bias))
