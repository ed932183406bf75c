"""SPAD convolutions: isotropic weights whose depth kernel and stride follow the spacing.

Every layer takes ``degree``: how many more in-plane halvings must happen at this layer's
high-resolution side before pixels are as large as slices are thick. A stack of layers passes
``max(degree - level, 0)``, where level counts the in-plane halvings before the layer.

Source: SPAD-Nets, arXiv 2312.07630, section 3; see also the laws in ``tests/layers``.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spadnet.layers.patches import patch_conv3d, patch_conv_transpose3d
from spadnet.layers.winograd import is_faster, winograd_conv3d
from spadnet.spacing import depth_stride

Reduction = Literal["mean", "sum"]
_CONV_SHAPES = {(3, 1), (3, 2), (4, 2), (1, 1)}
_TRANSPOSED_SHAPES = {(4, 2), (3, 2)}


def fold_depth(weight: Tensor, *, stride: int, degree: int) -> Tensor:
    """Sum the depth taps of an isotropic kernel that fall onto the same thick slice.

    Args:
        weight: Isotropic kernel, [..., k, k, k].
        stride: In-plane stride of the layer; k = stride means patches, anything else overlaps.
        degree: Anisotropy at the layer's high-resolution side.

    Returns:
        Folded kernel, [..., k_z, k, k] with k_z = ``depth_stride(stride, degree)`` for patches and
        k_z = 1 for overlapping kernels at degree > 0.
    """
    kernel_size = weight.shape[-1]
    if degree == 0 or kernel_size == 1:
        return weight
    taps = depth_stride(stride, degree) if kernel_size == stride else 1
    if weight.shape[-3] == taps:  # nothing to fold, or folded already
        return weight
    return weight.unflatten(-3, (taps, kernel_size // taps)).sum(-3)


def spad_conv3d(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, stride: int, degree: int
) -> Tensor:
    """Convolve a volume whose slices are ``2**degree`` times thicker than its pixels.

    Args:
        x: Volume, [B, C_in, D, H, W].
        weight: Isotropic kernel, [C_out, C_in, k, k, k], with (k, stride) one of k = stride,
            (3, 1), (3, 2), (4, 2); overlapping kernels are padded by 1.
        bias: [C_out] or None.
        stride: In-plane stride, a power of two.
        degree: Anisotropy at the input; 0 is isotropic.

    Returns:
        Features, [B, C_out, D / depth_stride, H / stride, W / stride].
    """
    return conv_folded(
        x,
        fold_depth(weight, stride=stride, degree=degree),
        bias,
        stride=stride,
        degree=degree,
    )


def conv_folded(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, stride: int, degree: int
) -> Tensor:
    """Like :func:`spad_conv3d` with a kernel that went through :func:`fold_depth` before."""
    strides = (depth_stride(stride, degree), stride, stride)
    if weight.shape[-1] == stride:
        # A compiler does better with the convolution, which also leaves a rest of the size out.
        if torch.compiler.is_compiling() or any(
            n % k for n, k in zip(x.shape[2:], strides, strict=True)
        ):
            return F.conv3d(x, weight, bias, stride=strides)
        return patch_conv3d(x, weight, bias)
    if stride == 1 and is_faster(x, weight):
        return winograd_conv3d(x, weight, bias)
    if degree > 0:
        return F.conv3d(x, weight, bias, stride=(1, stride, stride), padding=(0, 1, 1))
    if stride == 1 and _has_wrong_gradient(x):
        x = F.pad(x, (0, 0, 0, 0, 1, 1))
        return F.conv3d(x, weight, bias, padding=(0, 1, 1))
    return F.conv3d(x, weight, bias, stride=strides, padding=1)


def _has_wrong_gradient(x: Tensor) -> bool:
    """Whether oneDNN would fill the gradient of a padded 3x3x3 kernel with garbage.

    Its bfloat16 kernel for AVX-512 leaves memory unset where both slices of a volume touch the
    padding; seen in oneDNN of torch 2.14. Padding beforehand is another kernel.
    """
    if x.device.type != "cpu" or not torch.is_grad_enabled() or torch.compiler.is_exporting():
        return False
    in_bfloat16 = x.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")
    return in_bfloat16 and x.shape[2] == 2


def spad_conv_transpose3d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    stride: int,
    degree: int,
    reduction: Reduction = "mean",
) -> Tensor:
    """Upsample to a volume whose slices are ``2**degree`` times thicker than its pixels.

    Args:
        x: Features, [B, C_in, d, h, w].
        weight: Isotropic kernel, [C_in, C_out, k, k, k], with k = stride, (4, 2) or (3, 2).
        bias: [C_out] or None.
        stride: In-plane stride, a power of two.
        degree: Anisotropy at the output, the high-resolution side.
        reduction: ``"mean"``: a thick slice is the average of the thin slices it stands for.
            ``"sum"`` as in the released weights, whose output grows with the degree.

    Returns:
        Volume, [B, C_out, d * depth_stride, h * stride, w * stride].
    """
    folded = fold_transposed(weight, stride=stride, degree=degree, reduction=reduction)
    return conv_transpose_folded(x, folded, bias, stride=stride, degree=degree)


def fold_transposed(weight: Tensor, *, stride: int, degree: int, reduction: Reduction) -> Tensor:
    """Fold the depth taps of a transposed kernel, see :func:`spad_conv_transpose3d`."""
    folded = fold_depth(weight, stride=stride, degree=degree)
    if reduction == "sum":
        return folded
    return folded * (depth_stride(stride, degree) / stride)


def conv_transpose_folded(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, stride: int, degree: int
) -> Tensor:
    """Like :func:`spad_conv_transpose3d` with a kernel that was folded before."""
    strides = (depth_stride(stride, degree), stride, stride)
    kernel_size = weight.shape[-1]
    if kernel_size == stride:
        if torch.compiler.is_compiling():
            return F.conv_transpose3d(x, weight, bias, stride=strides)
        return patch_conv_transpose3d(x, weight, bias)
    thick = degree > 0
    output_padding = int(kernel_size == 3)  # a 3/2 kernel alone would give 2n - 1 positions
    return F.conv_transpose3d(
        x,
        weight,
        bias,
        stride=strides,
        padding=(0 if thick else 1, 1, 1),
        output_padding=(0 if thick else output_padding, output_padding, output_padding),
    )


def _check_kernel(kernel_size: int, stride: int, overlapping: set[tuple[int, int]]) -> None:
    power_of_two = stride > 0 and stride & (stride - 1) == 0
    if not power_of_two or (kernel_size != stride and (kernel_size, stride) not in overlapping):
        raise ValueError(f"kernel {kernel_size} with stride {stride} has no spacing-aware form")


class SpadConv3d(nn.Module):
    """Convolution with an isotropic kernel that adapts its depth to the degree.

    >>> conv = SpadConv3d(1, 8, kernel_size=4, stride=4)
    >>> conv(torch.zeros(1, 1, 8, 32, 32), 1).shape
    torch.Size([1, 8, 4, 8, 8])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        bias: bool = True,
    ) -> None:
        """Build the layer.

        Args:
            in_channels: Channels of the input.
            out_channels: Channels of the output.
            kernel_size: k, equal to the stride or one of 3/1, 3/2, 4/2, 1/1.
            stride: In-plane stride, a power of two.
            bias: Whether to add a bias per channel.
        """
        super().__init__()
        _check_kernel(kernel_size, stride, _CONV_SHAPES)
        reference = nn.Conv3d(in_channels, out_channels, kernel_size, bias=bias)
        self.stride = stride
        self.weight = reference.weight
        self.bias = reference.bias

    def forward(self, x: Tensor, degree: int) -> Tensor:
        """Convolve [B, C_in, D, H, W] of the given degree, see :func:`spad_conv3d`."""
        return spad_conv3d(x, self.weight, self.bias, stride=self.stride, degree=degree)

    def extra_repr(self) -> str:
        """Describe the kernel."""
        out_channels, in_channels, kernel_size = self.weight.shape[:3]
        return f"{in_channels}, {out_channels}, kernel_size={kernel_size}, stride={self.stride}"


class SpadConvTranspose3d(nn.Module):
    """Transposed convolution with an isotropic kernel that adapts its depth to the degree."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int,
        bias: bool = True,
        reduction: Reduction = "mean",
    ) -> None:
        """Build the layer.

        Args:
            in_channels: Channels of the input.
            out_channels: Channels of the output.
            kernel_size: k, equal to the stride or one of 4/2, 3/2.
            stride: In-plane stride, a power of two.
            bias: Whether to add a bias per channel.
            reduction: How depth taps are folded, see :func:`spad_conv_transpose3d`.
        """
        super().__init__()
        _check_kernel(kernel_size, stride, _TRANSPOSED_SHAPES)
        if reduction not in ("mean", "sum"):
            raise ValueError(f"reduction must be 'mean' or 'sum', got {reduction!r}")
        reference = nn.ConvTranspose3d(in_channels, out_channels, kernel_size, bias=bias)
        self.stride = stride
        self.reduction: Reduction = reduction
        self.weight = reference.weight
        self.bias = reference.bias

    def forward(self, x: Tensor, degree: int) -> Tensor:
        """Upsample [B, C_in, d, h, w]; ``degree`` is the one of the output."""
        return spad_conv_transpose3d(
            x,
            self.weight,
            self.bias,
            stride=self.stride,
            degree=degree,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        """Describe the kernel."""
        in_channels, out_channels, kernel_size = self.weight.shape[:3]
        return (
            f"{in_channels}, {out_channels}, kernel_size={kernel_size}, "
            f"stride={self.stride}, reduction={self.reduction}"
        )


def spad_max_pool3d(x: Tensor, degree: int, *, stride: int = 2) -> Tensor:
    """Max-pool in-plane by ``stride`` and along depth by what the degree leaves of it."""
    strides = (depth_stride(stride, degree), stride, stride)
    return F.max_pool3d(x, strides, strides)


def spad_avg_pool3d(x: Tensor, degree: int, *, stride: int = 2) -> Tensor:
    """Average-pool in-plane by ``stride`` and along depth by what the degree leaves of it."""
    strides = (depth_stride(stride, degree), stride, stride)
    return F.avg_pool3d(x, strides, strides)


def spad_interpolate(x: Tensor, degree: int, *, scale: int = 2, mode: str = "trilinear") -> Tensor:
    """Upsample in-plane by ``scale``; ``degree`` is the one of the output."""
    factors = [float(depth_stride(scale, degree)), float(scale), float(scale)]
    align = False if mode == "trilinear" else None
    return F.interpolate(x, scale_factor=factors, mode=mode, align_corners=align)


def inflate(
    weight: Tensor, depth: int, *, mode: Literal["average", "center"] = "average"
) -> Tensor:
    """Turn a 2D kernel into a 3D one whose depth taps sum to it.

    At degree 5 all taps are folded, so the inflated network *is* the 2D network.

    Args:
        weight: 2D kernel, [..., k, k].
        depth: Number of depth taps.
        mode: ``"average"`` spreads the kernel evenly; ``"center"`` puts it on the middle tap, or
            halves on the two middle ones where ``depth`` is even.

    Returns:
        3D kernel, [..., depth, k, k].
    """
    if mode == "average":
        share = torch.full((depth,), 1 / depth)
    elif mode == "center":
        share = torch.zeros(depth)
        share[(depth - 1) // 2] += 0.5
        share[depth // 2] += 0.5
    else:
        raise ValueError(f"mode must be 'average' or 'center', got {mode!r}")
    return weight.unsqueeze(-3) * share.to(weight).view(-1, 1, 1)
