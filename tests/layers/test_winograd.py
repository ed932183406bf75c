"""The Winograd form equals the direct convolution, and is used only where it was asked for."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from spadnet.layers import winograd
from spadnet.layers.spad_conv import spad_conv3d

SIZES = [(4, 6, 8), (3, 5, 7), (1, 4, 3), (2, 1, 1)]


@pytest.fixture
def high_precision_off() -> Iterator[None]:
    """Allow faster float32 products for one test."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("taps", [1, 3])
@pytest.mark.parametrize("one_plane_at_a_time", [False, True])
def test_equals_the_direct_convolution_with_its_gradients(
    size: tuple[int, int, int],
    taps: int,
    one_plane_at_a_time: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if one_plane_at_a_time:
        monkeypatch.setattr(winograd, "_MIN_SLAB_BYTES", 1)
    x = torch.randn(2, 6, *size, requires_grad=True)
    weight = (torch.randn(5, 6, taps, 3, 3) / 10).requires_grad_()
    bias = torch.randn(5, requires_grad=True)
    expected = F.conv3d(x, weight, bias, padding=(taps // 2, 1, 1))
    actual = winograd.winograd_conv3d(x, weight, bias)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    gradient = torch.randn_like(expected)
    inputs = (x, weight, bias)
    for one, other in zip(
        torch.autograd.grad(actual, inputs, gradient),
        torch.autograd.grad(expected, inputs, gradient),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_a_kernel_transformed_beforehand_gives_the_same() -> None:
    x, weight, bias = torch.randn(1, 6, 4, 4, 4), torch.randn(5, 6, 3, 3, 3), torch.randn(5)
    kernel = winograd.transform_kernel(weight)
    expected = winograd.winograd_conv3d(x, weight, bias)
    torch.testing.assert_close(winograd.conv_transformed(x, kernel, bias), expected)


def test_error_is_far_below_that_of_tensor_float_32() -> None:
    x = torch.randn(1, 64, 4, 8, 8, dtype=torch.double)
    weight = torch.randn(64, 64, 3, 3, 3, dtype=torch.double) / (27 * 64) ** 0.5
    exact = F.conv3d(x, weight, padding=1)
    error = (winograd.winograd_conv3d(x.float(), weight.float(), None) - exact).abs().max()
    assert error < 1e-3 / 20  # TensorFloat-32 keeps 10 bits, an error of about 1e-3 here


def test_full_precision_is_the_default() -> None:
    x, weight = torch.randn(1, 256, 4, 8, 8), torch.randn(256, 256, 3, 3, 3)
    assert not winograd.is_faster(x, weight)


@pytest.mark.usefixtures("high_precision_off")
def test_is_used_for_wide_layers_of_float32_on_cpu() -> None:
    x, weight = torch.randn(1, 256, 4, 8, 8), torch.randn(256, 256, 3, 3, 3)
    assert winograd.is_faster(x, weight)
    assert not winograd.is_faster(x.double(), weight.double())
    assert not winograd.is_faster(x[:, :8], weight[:, :8])
    assert not winograd.is_faster(x[..., :1, :1, :1], weight)  # few positions
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not winograd.is_faster(x, weight)


@pytest.mark.usefixtures("high_precision_off")
@pytest.mark.parametrize("degree", [0, 1])
def test_layers_use_it(degree: int, monkeypatch: pytest.MonkeyPatch) -> None:
    called = []

    def record(*arguments: torch.Tensor) -> torch.Tensor:
        called.append(True)
        return direct(*arguments)

    direct = winograd.winograd_conv3d
    monkeypatch.setattr("spadnet.layers.spad_conv.winograd_conv3d", record)
    x, weight = torch.randn(1, 256, 4, 8, 8), torch.randn(256, 256, 3, 3, 3) / 40
    fast = spad_conv3d(x, weight, None, stride=1, degree=degree)
    assert called
    torch.set_float32_matmul_precision("highest")
    exact = spad_conv3d(x, weight, None, stride=1, degree=degree)
    assert len(called) == 1
    torch.testing.assert_close(fast, exact, rtol=1e-4, atol=5e-5)
