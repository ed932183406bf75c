"""Masked image modelling: a SPAD-ViT predicts the tokenizer's codes behind the mask (stage 2)."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from spadnet.models.vit import SpadViT


class MimOutput(NamedTuple):
    """What one masked view yields.

    Attributes:
        logits: Predicted logits at masked positions, [B, M, K].
        target: Target logits at the same positions, [B, M, K].
        masked_index: Positions of the masked tokens, [B, M].
    """

    logits: Tensor
    target: Tensor
    masked_index: Tensor


def complement_index(visible_index: Tensor, num_tokens: int) -> Tensor:
    """Positions [B, L - V] that are missing in sorted or unsorted positions [B, V]."""
    is_masked = torch.ones(
        visible_index.shape[0], num_tokens, dtype=torch.bool, device=visible_index.device
    )
    is_masked.scatter_(1, visible_index, False)
    # A stable sort of the flags lists masked positions first, in order, with a static shape.
    order = is_masked.to(torch.uint8).argsort(dim=1, descending=True, stable=True)
    return order[:, : num_tokens - visible_index.shape[1]]


def gather_tokens(tokens: Tensor, index: Tensor) -> Tensor:
    """Pick tokens [B, V, C] of [B, L, C] (or [1, L, C]) at positions [B, V]."""
    tokens = tokens.expand(index.shape[0], -1, -1)
    return tokens.gather(1, index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def embed_visible(vit: SpadViT, x: Tensor, visible_index: Tensor, degree: int) -> Tensor:
    """Tokens [B, V, C] of visible patches before the first block; no other patch is embedded.

    Args:
        vit: The encoder.
        x: Volumes in [0, 1], [B, C_in, D, H, W].
        visible_index: Positions of the patches, [B, V].
        degree: Degree of anisotropy.
    """
    x, degree = vit.normalise(x, degree)
    grid = vit.patch_embed.grid_size(x.shape[-3:], degree)
    patches = gather_tokens(vit.patch_embed.patchify(x, degree), visible_index)
    visible = vit.patch_embed.project(patches, degree)
    return visible + gather_tokens(vit.positions(grid), visible_index)


class MaskedImageModel(nn.Module):
    """SPAD-ViT with mask tokens and a head that predicts a distribution over codes.

    The first blocks see visible tokens only; mask tokens enter for the last ``num_mask_layers``.
    All of them reproduces the published base model, 6 of 24 the large one.
    """

    def __init__(self, vit: SpadViT, *, codebook_size: int, num_mask_layers: int = 1) -> None:
        """Build the model.

        Args:
            vit: The encoder that is trained.
            codebook_size: Number of codes K of the tokenizer.
            num_mask_layers: Blocks that see mask tokens, counted from the end.
        """
        super().__init__()
        if not 1 <= num_mask_layers <= len(vit.blocks):
            raise ValueError(
                f"num_mask_layers must be 1 to {len(vit.blocks)}, got {num_mask_layers}"
            )
        self.vit = vit
        self.num_mask_layers = num_mask_layers
        self.mask_token = nn.Parameter(torch.zeros(1, 1, vit.embed_dim))
        layers = nn.Linear(vit.embed_dim, vit.embed_dim), nn.Linear(vit.embed_dim, codebook_size)
        self.head = nn.Sequential(layers[0], nn.GELU(), layers[1])
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        for layer in layers:
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def config(self) -> dict[str, Any]:
        """Constructor arguments as plain types; those of the encoder lie under ``vit``."""
        last = self.head[-1]
        assert isinstance(last, nn.Linear)
        return {
            "vit": self.vit.config(),
            "codebook_size": last.out_features,
            "num_mask_layers": self.num_mask_layers,
        }

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay must leave alone."""
        return {"mask_token"} | {f"vit.{name}" for name in self.vit.no_weight_decay()}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that assign parameters to layers, for layer-wise learning rates."""
        return {
            "stem": r"^vit\.(?:cls_token|reg_token|pos_embed|patch_embed)",
            "blocks": [(r"^vit\.blocks\.(\d+)", None), (r"^vit\.norm", (99999,))],
        }

    def hidden(self, x: Tensor, visible_index: Tensor, degree: int) -> Tensor:
        """Normalised tokens [B, L, C] of all positions, masked ones predicted.

        Args:
            x: Volumes in [0, 1], [B, C_in, D, H, W].
            visible_index: Positions that the model may see, [B, V].
            degree: Degree of anisotropy.
        """
        grid = self.vit.patch_embed.grid_size(x.shape[-3:], degree)
        masked_index = complement_index(visible_index, math.prod(grid))
        tokens = self._run(x, visible_index, masked_index, degree)
        place = torch.cat((visible_index, masked_index), dim=1).argsort(dim=1)
        return gather_tokens(tokens[:, self.vit.num_prefix_tokens :], place)

    def _run(
        self,
        x: Tensor,
        visible_index: Tensor,
        masked_index: Tensor,
        degree: int,
        *,
        num_outputs: int | None = None,
    ) -> Tensor:
        """Normalised class, visible and masked tokens in this order, or only the last ones."""
        vit = self.vit
        grid = vit.patch_embed.grid_size(x.shape[-3:], degree)
        tokens = vit.with_class_token(embed_visible(vit, x, visible_index, degree))
        # A token's place is known by its angles alone, so that tokens may stand in any order.
        order = torch.cat((visible_index, masked_index), dim=1).unsqueeze(1)
        cos, sin = (angles[order] for angles in vit.rope(grid, x.device))  # [B, 1, L, d]
        num_visible = visible_index.shape[1]
        num_plain = len(vit.blocks) - self.num_mask_layers
        if num_plain:
            seen = cos[:, :, :num_visible], sin[:, :, :num_visible]
            tokens = vit.run_blocks(tokens, *seen, stop=num_plain)
        unseen = self.mask_token.to(tokens.dtype).expand(*masked_index.shape, -1)
        tokens = torch.cat((tokens, unseen), dim=1)
        return vit.norm(vit.run_blocks(tokens, cos, sin, start=num_plain, num_outputs=num_outputs))

    def forward(self, x: Tensor, visible_index: Tensor, target: Tensor, degree: int) -> MimOutput:
        """Predict codes behind the mask.

        Args:
            x: Volumes in [0, 1], [B, C_in, D, H, W].
            visible_index: Positions that the model may see, [B, V].
            target: Logits of the frozen tokenizer at all positions, [B, L, K].
            degree: Degree of anisotropy.
        """
        masked_index = complement_index(visible_index, target.shape[1])
        # Nothing but the masked tokens is asked of the last block.
        num_masked = masked_index.shape[1]
        predicted = self._run(x, visible_index, masked_index, degree, num_outputs=num_masked)
        logits = self.head(predicted)
        return MimOutput(logits, gather_tokens(target, masked_index), masked_index)
