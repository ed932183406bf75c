"""Masked autoencoding: a SPAD-ViT sees few patches, a light decoder predicts the others' voxels.

Source: MAE, arXiv 2111.06377, with the patches and positions of the SPAD-ViT.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from spadnet.layers.block import Block
from spadnet.layers.rope import RotaryEmbedding3d
from spadnet.layers.spad_conv import fold_transposed
from spadnet.models.mim import complement_index, embed_visible, gather_tokens
from spadnet.models.vit import SpadViT


class MaeOutput(NamedTuple):
    """What one masked view yields.

    Attributes:
        predicted: Voxels of the masked patches, each patch on its own scale, [B, M, N].
        patches: The same patches of the image as it is, [B, M, N].
        masked_index: Positions of the masked patches, [B, M].
    """

    predicted: Tensor
    patches: Tensor
    masked_index: Tensor


class MaskedAutoencoder(nn.Module):
    """SPAD-ViT on visible tokens and a decoder of its own for the masked ones.

    The decoder's last layer has an isotropic kernel whose depth taps are averaged by the degree, as
    a transposed convolution's: one set of weights predicts patches of 16 slices and of one.
    """

    def __init__(
        self, vit: SpadViT, *, decoder_dim: int = 128, decoder_depth: int = 2, head_dim: int = 64
    ) -> None:
        """Build the model.

        Args:
            vit: The encoder that is trained.
            decoder_dim: Token width of the decoder, a multiple of ``head_dim``.
            decoder_depth: Blocks of the decoder.
            head_dim: Width of its attention heads.

        Raises:
            ValueError: If the sizes do not fit.
        """
        super().__init__()
        if decoder_depth < 1:
            raise ValueError(f"decoder_depth must be positive, got {decoder_depth}")
        if decoder_dim < head_dim or decoder_dim % head_dim:
            raise ValueError(f"decoder_dim must be a multiple of {head_dim}, got {decoder_dim}")
        self.vit = vit
        self.narrow = nn.Linear(vit.embed_dim, decoder_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_dim))
        self.rope = RotaryEmbedding3d(
            head_dim,
            base=vit.rope.base,
            depth_base=vit.rope.depth_base,
            rescale=vit.rope.rescale,
        )
        self.blocks = nn.ModuleList(
            Block(decoder_dim, num_heads=decoder_dim // head_dim) for _ in range(decoder_depth)
        )
        self.norm = nn.LayerNorm(decoder_dim)
        size = vit.patch_embed.patch_size
        self.to_voxels = nn.Parameter(torch.empty(decoder_dim, vit.in_chans, size, size, size))
        self.bias = nn.Parameter(torch.zeros(vit.in_chans))
        for module in (self.narrow, *self.blocks.modules()):
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        nn.init.trunc_normal_(self.to_voxels, std=0.02)

    def forward(self, x: Tensor, visible_index: Tensor, degree: int) -> MaeOutput:
        """Predict the voxels behind the mask.

        Args:
            x: Volumes in [0, 1], [B, C_in, D, H, W].
            visible_index: Positions that the encoder sees, [B, V].
            degree: Degree of anisotropy.
        """
        vit = self.vit
        grid = vit.patch_embed.grid_size(x.shape[-3:], degree)
        masked_index = complement_index(visible_index, math.prod(grid))
        num_masked = masked_index.shape[1]
        tokens = embed_visible(vit, x, visible_index, degree)
        cos, sin = (angles[visible_index.unsqueeze(1)] for angles in vit.rope(grid, x.device))
        tokens = vit.norm(vit.run_blocks(vit.with_class_token(tokens), cos, sin))

        tokens = self.narrow(tokens)
        unseen = self.mask_token.to(tokens.dtype).expand(*masked_index.shape, -1)
        tokens = torch.cat((tokens, unseen), dim=1)
        order = torch.cat((visible_index, masked_index), dim=1).unsqueeze(1)
        cos, sin = (angles[order] for angles in self.rope(grid, x.device))
        for left, block in zip(reversed(range(len(self.blocks))), self.blocks, strict=True):
            tokens = block(tokens, cos, sin, num_masked if left == 0 else None)
        predicted = self._voxels(self.norm(tokens), degree)
        patches = gather_tokens(vit.patch_embed.patchify(x, degree), masked_index)
        return MaeOutput(predicted, patches, masked_index)

    def _voxels(self, tokens: Tensor, degree: int) -> Tensor:
        """Patches [B, M, C_in * p_z * k * k], in the order of ``PatchEmbed.patchify``."""
        stride = self.vit.patch_embed.patch_size
        kernel = fold_transposed(self.to_voxels, stride=stride, degree=degree, reduction="mean")
        patches = tokens @ kernel.flatten(1)
        return patches + self.bias.repeat_interleave(kernel[0, 0].numel())
