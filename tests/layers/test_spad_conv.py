"""Laws of the SPAD layers: a thick slice acts as the thin slices it stands for."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from spadnet.layers.spad_conv import (
    SpadConv3d,
    SpadConvTranspose3d,
    inflate,
    spad_avg_pool3d,
    spad_conv3d,
    spad_conv_transpose3d,
    spad_interpolate,
    spad_max_pool3d,
)
from spadnet.spacing import MAX_DEGREE, depth_stride

DEGREES = range(MAX_DEGREE + 1)
PATCHES = [2, 4, 8, 16]
OVERLAPPING = [(3, 1), (3, 2), (4, 2)]


def repeat_slices(x: Tensor, times: int) -> Tensor:
    """Replace each slice of [B, C, D, H, W] by ``times`` copies."""
    return x.repeat_interleave(times, dim=2)


def average_slices(x: Tensor, times: int) -> Tensor:
    """Average each run of ``times`` slices."""
    return x.unflatten(2, (-1, times)).mean(3)


# --- convolution ---


@pytest.mark.parametrize("degree", DEGREES)
@pytest.mark.parametrize("stride", PATCHES)
def test_patches_equal_the_plain_convolution_on_repeated_slices(stride: int, degree: int) -> None:
    weight = torch.randn(3, 2, stride, stride, stride) / (2 * stride**3) ** 0.5
    bias = torch.randn(3)
    x = torch.randn(2, 2, 2 * depth_stride(stride, degree), 2 * stride, 3 * stride)
    thin = repeat_slices(x, stride // depth_stride(stride, degree))
    expected = F.conv3d(thin, weight, bias, stride=stride)
    actual = spad_conv3d(x, weight, bias, stride=stride, degree=degree)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("degree", DEGREES)
@pytest.mark.parametrize(("kernel_size", "stride"), OVERLAPPING)
def test_overlapping_kernels_equal_the_plain_one_where_slices_are_constant(
    kernel_size: int, stride: int, degree: int
) -> None:
    weight, bias = torch.randn(3, 2, *[kernel_size] * 3), torch.randn(3)
    x = torch.randn(1, 2, 1 if degree else 6, 8, 12)
    # Many copies of the one thick slice: in the middle the kernel sees nothing else.
    thin = repeat_slices(x, 9 if degree else 1)
    expected = F.conv3d(thin, weight, bias, stride=stride, padding=1)
    if degree:
        expected = expected[:, :, [expected.shape[2] // 2]]
    actual = spad_conv3d(x, weight, bias, stride=stride, degree=degree)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("degree", range(1, MAX_DEGREE + 1))
@pytest.mark.parametrize(("kernel_size", "stride"), OVERLAPPING)
def test_thick_slices_do_not_mix_in_overlapping_kernels(
    kernel_size: int, stride: int, degree: int
) -> None:
    weight = torch.randn(3, 2, *[kernel_size] * 3)
    x = torch.randn(1, 2, 3, 8, 8)
    together = spad_conv3d(x, weight, None, stride=stride, degree=degree)
    apart = [spad_conv3d(s, weight, None, stride=stride, degree=degree) for s in x.split(1, 2)]
    torch.testing.assert_close(together, torch.cat(apart, dim=2))


@pytest.mark.parametrize("degree", DEGREES)
def test_pointwise_kernel_is_unchanged(degree: int) -> None:
    weight, x = torch.randn(3, 2, 1, 1, 1), torch.randn(1, 2, 3, 4, 5)
    expected = F.conv3d(x, weight)
    assert torch.equal(spad_conv3d(x, weight, None, stride=1, degree=degree), expected)


def test_degree_zero_is_the_plain_convolution() -> None:
    for kernel_size, stride in [*OVERLAPPING, (1, 1), *zip(PATCHES, PATCHES, strict=True)]:
        layer = SpadConv3d(2, 3, kernel_size, stride=stride)
        x = torch.randn(1, 2, 16, 16, 16)
        padding = int(kernel_size not in (1, stride))
        expected = F.conv3d(x, layer.weight, layer.bias, stride=stride, padding=padding)
        torch.testing.assert_close(layer(x, 0), expected)


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_bfloat16_gradients_are_near(depth: int) -> None:
    x = torch.randn(4, 32, depth, 8, 8)
    weight = torch.randn(64, 32, 3, 3, 3) / 30
    gradients = []
    for dtype in (torch.float32, torch.bfloat16):
        kernel = weight.to(dtype, copy=True).requires_grad_()
        spad_conv3d(x.to(dtype), kernel, None, stride=1, degree=0).float().square().sum().backward()
        assert kernel.grad is not None
        gradients.append(kernel.grad.float())
    expected, actual = gradients
    assert (actual - expected).norm() < 0.02 * expected.norm()


# --- transposed convolution ---


@pytest.mark.parametrize("degree", DEGREES)
@pytest.mark.parametrize("stride", PATCHES[:3])
def test_transposed_mean_is_the_depth_average_of_the_full_output(stride: int, degree: int) -> None:
    weight, bias = torch.randn(2, 3, stride, stride, stride), torch.randn(3)
    x = torch.randn(2, 2, 2, 3, 4)
    full = F.conv_transpose3d(x, weight, bias, stride=stride)
    expected = average_slices(full, stride // depth_stride(stride, degree))
    actual = spad_conv_transpose3d(x, weight, bias, stride=stride, degree=degree)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("degree", DEGREES)
@pytest.mark.parametrize("kernel_size", [3, 4])
def test_overlapping_transposed_mean_is_the_depth_average_where_slices_are_constant(
    kernel_size: int, degree: int
) -> None:
    weight, bias = torch.randn(2, 3, *[kernel_size] * 3), torch.randn(3)
    x = torch.randn(1, 2, 1 if degree else 3, 4, 5)
    full = F.conv_transpose3d(
        repeat_slices(x, 6 if degree else 1),
        weight,
        bias,
        stride=2,
        padding=1,
        output_padding=kernel_size % 2,
    )
    # Two thin output slices stand for one thick slice; take the two in the middle.
    expected = average_slices(full[:, :, 4:6], 2) if degree else full
    actual = spad_conv_transpose3d(x, weight, bias, stride=2, degree=degree)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("degree", DEGREES)
@pytest.mark.parametrize("stride", PATCHES[:3])
def test_summed_taps_grow_with_what_is_pending(stride: int, degree: int) -> None:
    weight, x = torch.randn(2, 3, stride, stride, stride), torch.randn(1, 2, 2, 3, 3)
    mean = spad_conv_transpose3d(x, weight, None, stride=stride, degree=degree)
    total = spad_conv_transpose3d(x, weight, None, stride=stride, degree=degree, reduction="sum")
    growth = 2 ** min(degree, stride.bit_length() - 1)
    torch.testing.assert_close(total, growth * mean)


# --- 2D weights ---


@pytest.mark.parametrize("mode", ["average", "center"])
@pytest.mark.parametrize(
    ("kernel_size", "stride"), [*OVERLAPPING, (1, 1), *zip(PATCHES, PATCHES, strict=True)]
)
def test_inflated_layer_at_the_planar_degree_is_the_2d_layer(
    kernel_size: int, stride: int, mode: str
) -> None:
    weight, bias = torch.randn(3, 2, kernel_size, kernel_size), torch.randn(3)
    image = torch.randn(2, 2, 32, 16)
    inflated = inflate(weight, kernel_size, mode=mode)
    torch.testing.assert_close(inflated.sum(2), weight)
    padding = int(kernel_size not in (1, stride))
    expected = F.conv2d(image, weight, bias, stride=stride, padding=padding)
    actual = spad_conv3d(image.unsqueeze(2), inflated, bias, stride=stride, degree=MAX_DEGREE)
    torch.testing.assert_close(actual.squeeze(2), expected, rtol=1e-4, atol=1e-4)


def test_center_inflation_puts_weight_on_the_middle_alone() -> None:
    weight = torch.ones(1, 1, 1, 1)
    assert inflate(weight, 5, mode="center").flatten().tolist() == [0, 0, 1, 0, 0]
    assert inflate(weight, 4, mode="center").flatten().tolist() == [0, 0.5, 0.5, 0]
    with pytest.raises(ValueError, match="'middle'"):
        inflate(weight, 3, mode="middle")


# --- pooling and interpolation ---


@pytest.mark.parametrize("degree", DEGREES)
@pytest.mark.parametrize("stride", [2, 4])
def test_pooling_equals_plain_pooling_of_repeated_slices(stride: int, degree: int) -> None:
    x = torch.randn(1, 2, 2 * depth_stride(stride, degree), 8, 12)
    thin = repeat_slices(x, stride // depth_stride(stride, degree))
    assert torch.equal(spad_max_pool3d(x, degree, stride=stride), F.max_pool3d(thin, stride))
    torch.testing.assert_close(
        spad_avg_pool3d(x, degree, stride=stride), F.avg_pool3d(thin, stride)
    )


@pytest.mark.parametrize("degree", DEGREES)
def test_interpolation_is_the_depth_average_of_the_full_one(degree: int) -> None:
    x = torch.randn(1, 2, 3, 4, 5)
    full = F.interpolate(x, scale_factor=2.0, mode="nearest")
    expected = average_slices(full, 2 // depth_stride(2, degree))
    torch.testing.assert_close(spad_interpolate(x, degree, mode="nearest"), expected)
    if degree == 0:
        full = F.interpolate(x, scale_factor=2.0, mode="trilinear")
        torch.testing.assert_close(spad_interpolate(x, 0), full)
    else:  # slices are left alone: each is interpolated as an image
        planes = [F.interpolate(p, scale_factor=2.0, mode="bilinear") for p in x.unbind(2)]
        torch.testing.assert_close(spad_interpolate(x, degree), torch.stack(planes, dim=2))


# --- shapes and faults ---


def test_a_stack_ends_at_the_same_depth_for_every_degree() -> None:
    layers = [SpadConv3d(1, 1, 4, stride=4), SpadConv3d(1, 1, 2, stride=2)]
    layers += [SpadConv3d(1, 1, 4, stride=2), SpadConv3d(1, 1, 3)]
    for degree in DEGREES:
        x, level = torch.randn(1, 1, 2 * max(16 >> degree, 1), 32, 32), 0
        for layer in layers:
            x = layer(x, max(degree - level, 0))
            level += layer.stride.bit_length() - 1
        assert x.shape == (1, 1, 2, 2, 2)


@pytest.mark.parametrize(
    ("kernel_size", "stride"), [(5, 1), (3, 3), (4, 1), (2, 4), (6, 6), (3, 0), (0, 0)]
)
def test_kernels_without_a_spacing_aware_form_are_refused(kernel_size: int, stride: int) -> None:
    for layer in (SpadConv3d, SpadConvTranspose3d):
        with pytest.raises(ValueError, match=f"kernel {kernel_size} with stride {stride}"):
            layer(1, 1, kernel_size, stride=stride)


def test_unknown_reduction_is_refused() -> None:
    with pytest.raises(ValueError, match="'max'"):
        SpadConvTranspose3d(1, 1, 2, stride=2, reduction="max")


def test_layers_say_what_they_are() -> None:
    assert "kernel_size=4, stride=2" in repr(SpadConv3d(1, 2, 4, stride=2))
    assert "reduction=sum" in repr(SpadConvTranspose3d(1, 2, 2, stride=2, reduction="sum"))


def test_both_layers_learn_at_every_degree() -> None:
    for degree, (kernel_size, stride) in itertools.product(DEGREES, [(2, 2), (4, 2), (3, 2)]):
        for layer in (
            SpadConv3d(2, 3, kernel_size, stride=stride),
            SpadConvTranspose3d(2, 3, kernel_size, stride=stride),
        ):
            layer(torch.randn(1, 2, 4, 4, 4), degree).square().sum().backward()
            assert layer.weight.grad is not None
            assert layer.weight.grad.abs().amax((0, 1, 3, 4)).gt(0).all()  # every depth tap
