"""A classifier that pools a ViT's tokens by learned attention, for an encoder that stays frozen."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spadnet.models.vit import SpadViT
from spadnet.models.vit_init import init_linear


class AttentionPool(nn.Module):
    """Learned queries look at all tokens; what they gather is averaged."""

    def __init__(self, embed_dim: int, *, num_heads: int, num_queries: int = 1) -> None:
        """Build the pool.

        Args:
            embed_dim: Token width.
            num_heads: Attention heads.
            num_queries: Learned queries.
        """
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(embed_dim)
        self.query = nn.Parameter(torch.zeros(1, num_queries, embed_dim))
        nn.init.trunc_normal_(self.query, std=0.02)
        self.kv = nn.Linear(embed_dim, 2 * embed_dim)
        self.proj = nn.Linear(embed_dim, embed_dim)
        for layer in (self.kv, self.proj):
            init_linear(layer)

    def forward(self, tokens: Tensor) -> Tensor:
        """Pool tokens [B, L, C] to [B, C]."""
        tokens = self.norm(tokens)
        query = self.query.expand(tokens.shape[0], -1, -1).unflatten(2, (self.num_heads, -1))
        key, value = self.kv(tokens).unflatten(2, (2, self.num_heads, -1)).unbind(2)
        pooled = F.scaled_dot_product_attention(
            query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        )
        return self.proj(pooled.transpose(1, 2).flatten(2)).mean(1)


class AttentionClassifier(nn.Module):
    """A ViT, an attention pool over all of its tokens, and a linear classifier."""

    def __init__(
        self, vit: SpadViT, *, num_classes: int, num_queries: int = 1, drop_rate: float = 0.0
    ) -> None:
        """Build the model.

        Args:
            vit: The encoder; its own classifier is taken away.
            num_classes: Width of the output.
            num_queries: Queries of the pool.
            drop_rate: Dropout before the classifier.
        """
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes must be positive, got {num_classes}")
        vit.reset_classifier(0)
        self.vit = vit
        self.num_classes = num_classes
        heads = getattr(vit.blocks[0], "attn").num_heads  # noqa: B009, a Block behind a Module
        self.pool = AttentionPool(vit.embed_dim, num_heads=heads, num_queries=num_queries)
        self.head_drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(vit.embed_dim, num_classes)
        init_linear(self.head)

    def config(self) -> dict[str, Any]:
        """Constructor arguments, as plain types, that build this model as it is now."""
        return {
            "vit": self.vit.config(),
            "num_classes": self.num_classes,
            "num_queries": self.pool.query.shape[1],
            "drop_rate": self.head_drop.p,
        }

    def forward(self, x: Tensor, degree: int | None = None) -> Tensor:
        """Return logits [B, num_classes] of an image in [0, 1]; see :class:`SpadViT`."""
        return self.head(self.head_drop(self.pool(self.vit.forward_features(x, degree))))

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay must leave alone."""
        return {"pool.query"} | {f"vit.{name}" for name in self.vit.no_weight_decay()}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that assign parameters to layers, for layer-wise learning rates."""
        return {
            "stem": r"^vit\.(?:cls_token|reg_token|pos_embed|patch_embed)",
            "blocks": [(r"^vit\.blocks\.(\d+)", None), (r"^vit\.norm", (99999,))],
        }
