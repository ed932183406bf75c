"""Winograd convolution in float32 on CPU: 3x3x3 and 1x3x3 kernels with fewer products.

F(2, 3) along each axis (Lavin and Gray, arXiv 1509.09308): a tile of 4 inputs gives 2 outputs by 4
products instead of 6, so that three axes need 8 products for an output instead of 27, two axes 4
instead of 9. The transforms are sums; the products are one batch of matrix products. Rounding is
some ten times that of the direct form, far below TensorFloat-32, so it is used where
:func:`torch.set_float32_matmul_precision` asks for less than ``"highest"``.

In this module volumes are channels last, [B, D, H, W, C]. Tiles are worked off slab by slab in
buffers that stay in the cache. The P = 4**n points of a tile, n axes, are counted with the last
axis first, the order in which the transforms produce them.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

_KERNEL_ROWS = ((1.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0.0, 0.0, 1.0))
_OUTPUT_ROWS = ((1.0, 0.0), (1.0, 1.0), (1.0, -1.0), (0.0, -1.0))
_MIN_SLAB_BYTES = 8 << 20
_MIN_CHANNELS = 256


def is_allowed(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether this module works for a device and precision, and was asked for."""
    on_cpu = device.type == "cpu" and dtype == torch.float32
    return on_cpu and torch.get_float32_matmul_precision() != "highest"


def is_wide(weight: Tensor) -> bool:
    """Whether a kernel [C_out, C_in, 3 or 1, 3, 3] has so many channels that products prevail."""
    return min(weight.shape[:2]) >= _MIN_CHANNELS


def is_faster(x: Tensor, weight: Tensor) -> bool:
    """Whether a convolution with stride 1 and padding 1 gains by this module, and may use it.

    Args:
        x: Volume, [B, C_in, D, H, W].
        weight: Kernel, [C_out, C_in, 3 or 1, 3, 3].
    """
    if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return False
    if x.dtype != weight.dtype or not is_allowed(x.device, x.dtype) or not is_wide(weight):
        return False
    # Transforming the kernel must not cost more than the products save.
    return 2 * x.numel() >= x.shape[1] * min(weight.shape[:2])


def winograd_conv3d(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve with stride 1 and padding 1 (none along an axis where the kernel has one tap).

    Args:
        x: Volume, [B, C_in, D, H, W], best channels last in memory.
        weight: Kernel, [C_out, C_in, 3 or 1, 3, 3], best channels last in memory.
        bias: [C_out] or None.

    Returns:
        Features, [B, C_out, D, H, W], channels last in memory.
    """
    return _Winograd.apply(x, weight, bias)


def transform_kernel(weight: Tensor) -> Tensor:
    """Transform a kernel [C_out, C_in, 3 or 1, 3, 3] into [C_out, P, C_in]."""
    axes = _num_axes(weight)
    taps = weight.permute(0, 2, 3, 4, 1).flatten(1, 3)
    points = _kernel_matrix(axes).expand(taps.shape[0], -1, -1)
    return torch.bmm(points, taps)


def conv_transformed(x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
    """Like :func:`winograd_conv3d` with a kernel from :func:`transform_kernel`, no gradients."""
    axes = 3 if kernel.shape[1] == 64 else 2
    return _convolve(x.movedim(1, -1), kernel.permute(1, 2, 0), bias, axes=axes).movedim(-1, 1)


class _Winograd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        kernel = transform_kernel(weight)
        ctx.save_for_backward(x, kernel)
        return conv_transformed(x, kernel, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, kernel = ctx.saved_tensors
        axes = 3 if kernel.shape[1] == 64 else 2
        gradient = gradients[0].movedim(1, -1).contiguous()
        for_x = for_weight = for_bias = None
        if ctx.needs_input_grad[0]:
            # The same convolution with flipped taps; flipping taps reverses the order of points.
            flipped = kernel.transpose(0, 1)
            for_x = _convolve(gradient, flipped, None, axes=axes, flip=True).movedim(-1, 1)
        if ctx.needs_input_grad[1]:
            for_kernel = _kernel_gradient(x.movedim(1, -1), gradient, axes=axes).transpose(0, 1)
            to_taps = _kernel_matrix(axes).t().contiguous().expand(for_kernel.shape[0], -1, -1)
            taps = torch.bmm(to_taps, for_kernel).unflatten(1, (-1, 3, 3))
            for_weight = taps.permute(0, 4, 1, 2, 3)
        if ctx.needs_input_grad[2]:
            for_bias = gradient.flatten(0, -2).sum(0)
        return for_x, for_weight, for_bias


def _num_axes(weight: Tensor) -> int:
    return 3 if weight.shape[2] == 3 else 2


def _power(matrix: Tensor, axes: int) -> Tensor:
    """Kronecker power, rows (first axis first) brought into the order of points."""
    power = matrix
    for _ in range(axes - 1):
        power = torch.kron(power, matrix)
    rows = power.view(*(4,) * axes, -1)
    return rows.permute(*reversed(range(axes)), axes).flatten(0, -2)


def _kernel_matrix(axes: int) -> Tensor:
    """Transform [P, 3**n] of taps into points."""
    return _power(torch.tensor(_KERNEL_ROWS), axes)


def _output_matrix(axes: int) -> Tensor:
    """Transform [P, 2**n] whose transpose turns points into outputs, last axis first."""
    power = _power(torch.tensor(_OUTPUT_ROWS), axes)
    return power.view(-1, *(2,) * axes).permute(0, *range(axes, 0, -1)).flatten(1)


class _Slab(NamedTuple):
    """Tiles between two planes: their input with a margin of one, and their output."""

    source: slice
    target: slice


class _Buffers:
    """Memory by name that is used again for each slab."""

    def __init__(self) -> None:
        self.flat: dict[str, Tensor] = {}

    def take(self, name: str, *shape: int) -> Tensor:
        size = torch.Size(shape).numel()
        if name not in self.flat:
            self.flat[name] = torch.empty(size)  # no later slab is larger than the first
        return self.flat[name][:size].view(shape)


def _slabs(x: Tensor, *, axes: int, c_in: int, c_out: int) -> Iterator[_Slab]:
    """Cut [B, D, H, W, C] along depth so that the points of a slab fit into the cache."""
    batch, depth, height, width = x.shape[:4]
    tile, margin = (2, 2) if axes == 3 else (1, 0)
    planes = -(-depth // tile)
    plane_bytes = batch * -(-height // 2) * -(-width // 2) * 4**axes * max(c_in, c_out) * 4
    # Each slab reads the kernel once more, so that it must not be much smaller than the kernel.
    bytes_wanted = max(_MIN_SLAB_BYTES, 4**axes * c_in * c_out * 4)
    step = max(min(bytes_wanted // plane_bytes, planes), 1)
    for start in range(0, planes, step):
        target = slice(tile * start, tile * min(start + step, planes))
        yield _Slab(slice(target.start, target.stop + margin), target)


def _pad(x: Tensor, *, axes: int, margin: int) -> Tensor:
    """Pad the axes that have tiles by a margin, and to an even size."""
    pads = [0, 0]
    for size in reversed(x.shape[4 - axes : 4]):
        pads += [margin, margin + size % 2]
    return F.pad(x, pads) if any(pads) else x


def _points(x: Tensor, buffers: _Buffers, *, axes: int, flip: bool = False) -> Tensor:
    """Transform padded input [B, D + 2, H + 2, W + 2, C] into points [P, B, d, h, w, C]."""
    first, last = (3, 0) if flip else (0, 3)
    for done, axis in enumerate(range(4 - axes, 4)):
        dim = axis + done  # each finished axis has put its four points in front
        size = x.shape[dim] - 2
        a, b = x.narrow(dim, 0, size).unflatten(dim, (-1, 2)).unbind(dim + 1)
        c, d = x.narrow(dim, 2, size).unflatten(dim, (-1, 2)).unbind(dim + 1)
        out = buffers.take(f"axis{axis}", 4, *a.shape)
        torch.sub(a, c, out=out[first])
        torch.add(b, c, out=out[1])
        torch.sub(c, b, out=out[2])
        torch.sub(b, d, out=out[last])
        x = out
    return x.flatten(0, axes - 1)


def _outputs(points: Tensor, buffers: _Buffers, *, axes: int, flip: bool) -> Tensor:
    """Transform points [P, T, C] of products into outputs [2, .., 2, T, C], last axis first."""
    first, last = (3, 0) if flip else (0, 3)
    x = points.unflatten(0, (4,) * axes)
    for axis in range(axes):
        # What is finished stands behind the axes that are left.
        out = buffers.take(f"outputs{axis}", 2, *x.shape[1:])
        torch.add(x[1], x[2], out=out[0]).add_(x[first])
        torch.sub(x[1], x[2], out=out[1]).sub_(x[last])
        x = out.movedim(0, axes - 1)
    return x


def _corners(y: Tensor, *, axes: int) -> Tensor:
    """View outputs [B, D, H, W, C] as [2, .., 2, B, d, h, w, C], last axis first."""
    for axis in range(3, 3 - axes, -1):
        y = y.unflatten(axis, (-1, 2))
    within = [5 - axes + 2 * i for i in reversed(range(axes))]
    return y.permute(*within, *(dim for dim in range(y.ndim) if dim not in within))


def _convolve(
    x: Tensor, kernel: Tensor, bias: Tensor | None, *, axes: int, flip: bool = False
) -> Tensor:
    """Convolve [B, D, H, W, C_in] with points [P, C_in, C_out] of a kernel."""
    buffers = _Buffers()
    num_points, _, channels = kernel.shape
    padded = _pad(x, axes=axes, margin=1)
    even = [n + n % 2 if i >= 3 - axes else n for i, n in enumerate(x.shape[1:4])]
    y = x.new_empty(x.shape[0], *even, channels)
    for slab in _slabs(x, axes=axes, c_in=x.shape[-1], c_out=channels):
        points = _points(padded[:, slab.source], buffers, axes=axes, flip=flip)
        num_tiles = points.shape[1:5].numel()
        products = buffers.take("products", num_points, num_tiles, channels)
        torch.bmm(points.flatten(1, 4), kernel, out=products)
        outputs = _outputs(products, buffers, axes=axes, flip=flip)
        corners = _corners(y[:, slab.target], axes=axes)
        corners.copy_(outputs.view(corners.shape))
    y = y[:, : x.shape[1], : x.shape[2], : x.shape[3]]
    return y if bias is None else y.add_(bias)


def _kernel_gradient(x: Tensor, gradient: Tensor, *, axes: int) -> Tensor:
    """Gradient [P, C_out, C_in] of a transformed kernel, from input and output's gradient."""
    buffers = _Buffers()
    num_points, c_in, c_out = 4**axes, x.shape[-1], gradient.shape[-1]
    padded, gradient = _pad(x, axes=axes, margin=1), _pad(gradient, axes=axes, margin=0)
    from_outputs = _output_matrix(axes)
    total = x.new_empty(num_points, c_out, c_in)
    for index, slab in enumerate(_slabs(x, axes=axes, c_in=c_in, c_out=c_out)):
        points = _points(padded[:, slab.source], buffers, axes=axes).flatten(1, 4)
        corners = _corners(gradient[:, slab.target], axes=axes)
        num_tiles = points.shape[1]
        outputs = buffers.take("outputs", 2**axes, num_tiles * c_out)
        outputs.view(corners.shape).copy_(corners)
        products = buffers.take("products", num_points, num_tiles, c_out)
        torch.mm(from_outputs, outputs, out=products.view(num_points, -1))
        torch.baddbmm(total, products.transpose(1, 2), points, beta=min(index, 1), out=total)
    return total
