"""Multi-head attention with rotary positions, as in EVA-02."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spadnet.layers.rope import rotate

_SHORT = 640  # tokens up to which products and softmax are the faster attention on CPUs


class RotaryAttention(nn.Module):
    """Self-attention whose queries and keys turn with their position; the class token does not.

    One matrix product makes queries, keys and values; keys have no bias.
    """

    def __init__(self, embed_dim: int, *, num_heads: int, qkv_bias: bool = True) -> None:
        """Build the layer.

        Args:
            embed_dim: Token width.
            num_heads: Number of heads, a divisor of ``embed_dim``.
            qkv_bias: Whether queries and values have a bias.
        """
        super().__init__()
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim {embed_dim} is not a multiple of num_heads {num_heads}")
        self.num_heads = num_heads
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(embed_dim)) if qkv_bias else None
        self.v_bias = nn.Parameter(torch.zeros(embed_dim)) if qkv_bias else None
        self.proj = nn.Linear(embed_dim, embed_dim)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, num_queries: int | None = None
    ) -> Tensor:
        """Attend among tokens.

        Args:
            x: Tokens, [B, P + L, C]: P prefix tokens (the class token) first.
            cos: Cosine of the angles of the L positions, [L, d] or [B, 1, L, d].
            sin: Sine of the same angles.
            num_queries: How many of the last tokens ask, at most L; None for all tokens.

        Returns:
            Tokens, [B, P + L, C], or [B, num_queries, C] for those that ask.
        """
        zero = None if self.q_bias is None else torch.zeros_like(self.q_bias)
        if num_queries is None:
            bias = _joined(self.q_bias, zero, self.v_bias)
            qkv = F.linear(x, self.qkv.weight, bias).unflatten(-1, (3, self.num_heads, -1))
            q, k, v = qkv.permute(2, 0, 3, 1, 4)  # [B, heads, P + L, d] each
        else:
            q_weight, kv_weight = self.qkv.weight.split((x.shape[-1], 2 * x.shape[-1]))
            q = F.linear(x[:, x.shape[1] - num_queries :], q_weight, self.q_bias)
            q = q.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            kv = F.linear(x, kv_weight, _joined(zero, self.v_bias))
            k, v = kv.unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = _rotate_last(q, cos, sin), _rotate_last(k, cos, sin)
        # Angles are float32; one cast brings queries and keys back to the precision of the rest.
        x = attend(q.to(v.dtype), k.to(v.dtype), v)
        return self.proj(x.transpose(1, 2).flatten(2))


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of [B, heads, T, d]; written out where the fused kernel is slower.

    That of CPUs takes in bfloat16, forward and backward, 1.5 to 3 times as long as two products and
    a softmax up to 513 tokens (torch 2.14; see ``tools/bench_attention.py``).
    """
    is_short = k.shape[-2] <= _SHORT and v.dtype == torch.bfloat16 and v.device.type == "cpu"
    if is_short and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(-1).to(v.dtype) @ v
    return F.scaled_dot_product_attention(q, k, v)


def _joined(*biases: Tensor | None) -> Tensor | None:
    """Concatenate biases, None where there are none."""
    given = [bias for bias in biases if bias is not None]
    return torch.cat(given) if given else None


def _rotate_last(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate [B, heads, T, d] by the last angles; tokens before the first angle stay."""
    num_rotated = min(x.shape[-2], cos.shape[-2])
    num_prefix = x.shape[-2] - num_rotated
    first = cos.shape[-2] - num_rotated
    cos, sin = cos[..., first:, :], sin[..., first:, :]
    if num_prefix == 0:
        return rotate(x, cos, sin)
    return torch.cat((x[..., :num_prefix, :], rotate(x[..., num_prefix:, :], cos, sin)), dim=-2)
