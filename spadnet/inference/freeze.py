"""Lay out a network's matrices once for inference on CPU.

PyTorch's float32 products go to MKL, which leaves AMD processors at less than half their speed.
oneDNN does not, once a matrix has been brought into its own layout; measured on a Zen 5 core: 227
instead of 99 GFLOP/s. What comes out can do nothing but infer.
"""

import copy
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spadnet.layers.attention import RotaryAttention
from spadnet.layers.rope import rotate

_Module = TypeVar("_Module", bound=nn.Module)


class PackedLinear(nn.Module):
    """A linear layer whose matrix lies as oneDNN wants it; no parameter, and not in a state."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """Pack a weight [C_out, C_in]."""
        super().__init__()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous())
        self.bias = None if bias is None else bias.detach().clone()

    def forward(self, x: Tensor) -> Tensor:
        """Transform [..., C_in]."""
        output = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
        assert isinstance(output, Tensor)
        return output


class PackedAttention(nn.Module):
    """A :class:`RotaryAttention` of packed matrices."""

    def __init__(self, attention: RotaryAttention) -> None:
        """Pack the layer."""
        super().__init__()
        self.num_heads = attention.num_heads
        bias = None
        if attention.q_bias is not None and attention.v_bias is not None:
            zero = torch.zeros_like(attention.q_bias)
            bias = torch.cat((attention.q_bias, zero, attention.v_bias))
        self.qkv = PackedLinear(attention.qkv.weight, bias)
        self.proj = PackedLinear(attention.proj.weight, attention.proj.bias)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, num_queries: int | None = None
    ) -> Tensor:
        """Attend among tokens, see :meth:`RotaryAttention.forward`."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        num_prefix = x.shape[1] - cos.shape[-2]  # these do not turn
        q, k = (
            torch.cat((y[:, :, :num_prefix], rotate(y[:, :, num_prefix:], cos, sin)), dim=2)
            for y in (q, k)
        )
        q = q if num_queries is None else q[:, :, q.shape[2] - num_queries :]
        x = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v)
        return self.proj(x.transpose(1, 2).flatten(2))


def can_freeze(model: nn.Module) -> bool:
    """Whether :func:`freeze` helps here: an x86 CPU that has the precision, PyTorch with oneDNN."""
    parameters = list(model.parameters())
    if any(parameter.device.type != "cpu" for parameter in parameters):
        return False
    in_bfloat16 = any(parameter.dtype == torch.bfloat16 for parameter in parameters)
    if in_bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    names = ("_reorder_linear_weight", "_linear_pointwise")
    has_products = all(hasattr(torch.ops.mkldnn, name) for name in names)
    return torch.backends.mkldnn.is_available() and has_products and torch.cpu._is_avx2_supported()


def freeze(model: _Module) -> _Module:
    """Copy a network with all its matrices packed for inference on CPU.

    Args:
        model: A network in float32 or bfloat16.

    Returns:
        A copy in evaluation mode without gradients, with the same output but for rounding. It can
        be neither trained nor saved nor exported.

    Raises:
        ValueError: If the weights are not on the CPU, it lacks their precision, or PyTorch has no
            oneDNN.
    """
    if not can_freeze(model):
        raise ValueError("only a network on an x86 CPU can be frozen, by a PyTorch with oneDNN")
    frozen = copy.deepcopy(model).eval().requires_grad_(False)
    for name, module in list(frozen.named_modules()):
        packed: nn.Module
        if isinstance(module, RotaryAttention):
            packed = PackedAttention(module)
        elif isinstance(module, nn.Linear):
            packed = PackedLinear(module.weight, module.bias)
        else:
            continue
        parent, _, child = name.rpartition(".")
        holder = frozen.get_submodule(parent)
        if not isinstance(holder, PackedAttention):  # its matrices are packed already
            setattr(holder, child, packed)
    return frozen
