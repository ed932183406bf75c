"""The transformer block of EVA-02: pre-norm, SwiGLU with an inner LayerNorm (sub-LN).

With ``mlp="gelu"`` and angles that never turn it is the block of the plain ViT.
"""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from spadnet.layers.attention import RotaryAttention

MlpKind = Literal["swiglu", "gelu"]


class DropPath(nn.Module):
    """Drop a residual branch for some samples in training, and scale up those that keep it."""

    def __init__(self, drop_prob: float) -> None:
        """Build the layer.

        Args:
            drop_prob: Chance that a sample loses the branch.
        """
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        """Drop whole samples of [B, ...]."""
        if not self.training or self.drop_prob == 0:
            return x
        kept = x.new_empty(x.shape[0], *(1,) * (x.ndim - 1)).bernoulli_(1 - self.drop_prob)
        return x * kept / max(1 - self.drop_prob, 1e-6)


class SwiGLU(nn.Module):
    """Gated feed-forward layer ``w3(norm(silu(w1 x) * w2 x))``."""

    def __init__(
        self, embed_dim: int, hidden_dim: int, *, sub_ln: bool = True, norm_eps: float = 1e-5
    ) -> None:
        """Build the layer.

        Args:
            embed_dim: Token width.
            hidden_dim: Width between the products.
            sub_ln: Whether the inner LayerNorm exists.
            norm_eps: Epsilon of the inner LayerNorm.
        """
        super().__init__()
        self.w1 = nn.Linear(embed_dim, hidden_dim)
        self.w2 = nn.Linear(embed_dim, hidden_dim)
        self.norm = nn.LayerNorm(hidden_dim, eps=norm_eps) if sub_ln else nn.Identity()
        self.w3 = nn.Linear(hidden_dim, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Transform tokens [B, L, C]."""
        return self.w3(self.norm(F.silu(self.w1(x)) * self.w2(x)))


class GeluMlp(nn.Module):
    """Feed-forward layer of the plain ViT, ``w3(norm(gelu(w1 x)))``."""

    def __init__(
        self, embed_dim: int, hidden_dim: int, *, sub_ln: bool = False, norm_eps: float = 1e-5
    ) -> None:
        """Build the layer, see :class:`SwiGLU`."""
        super().__init__()
        self.w1 = nn.Linear(embed_dim, hidden_dim)
        self.norm = nn.LayerNorm(hidden_dim, eps=norm_eps) if sub_ln else nn.Identity()
        self.w3 = nn.Linear(hidden_dim, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Transform tokens [B, L, C]."""
        return self.w3(self.norm(F.gelu(self.w1(x))))


_MLPS: dict[str, type[SwiGLU] | type[GeluMlp]] = {"swiglu": SwiGLU, "gelu": GeluMlp}


class Block(nn.Module):
    """Pre-norm attention and feed-forward layer, each with a residual connection."""

    def __init__(
        self,
        embed_dim: int,
        *,
        num_heads: int,
        mlp_ratio: float = 8 / 3,
        qkv_bias: bool = True,
        sub_ln: bool = True,
        mlp: MlpKind = "swiglu",
        drop_path: float = 0.0,
        norm_eps: float = 1e-5,
    ) -> None:
        """Build the block.

        Args:
            embed_dim: Token width.
            num_heads: Number of attention heads.
            mlp_ratio: Hidden width of the feed-forward layer over the token width.
            qkv_bias: Whether queries and values have a bias.
            sub_ln: Whether the feed-forward layer has an inner LayerNorm.
            mlp: Kind of the feed-forward layer.
            drop_path: Chance that a residual branch is dropped for a sample.
            norm_eps: Epsilon of all LayerNorms.
        """
        super().__init__()
        if mlp not in _MLPS:
            raise ValueError(f"mlp must be one of {', '.join(_MLPS)}, got {mlp!r}")
        self.norm1 = nn.LayerNorm(embed_dim, eps=norm_eps)
        self.attn = RotaryAttention(embed_dim, num_heads=num_heads, qkv_bias=qkv_bias)
        self.norm2 = nn.LayerNorm(embed_dim, eps=norm_eps)
        hidden_dim = int(embed_dim * mlp_ratio)
        self.mlp = _MLPS[mlp](embed_dim, hidden_dim, sub_ln=sub_ln, norm_eps=norm_eps)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, num_queries: int | None = None
    ) -> Tensor:
        """Transform tokens [B, P + L, C], or only the last ``num_queries`` of them.

        See :class:`RotaryAttention` for the angles.
        """
        attended = self.drop_path(self.attn(self.norm1(x), cos, sin, num_queries))
        x = (x if num_queries is None else x[:, x.shape[1] - num_queries :]) + attended
        return x + self.drop_path(self.mlp(self.norm2(x)))
