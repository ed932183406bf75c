"""Feature pyramids: maps at rising in-plane strides out of a SPAD-ViT or a tokenizer's encoder."""

from collections.abc import Sequence

from torch import Tensor, nn

from spadnet.layers.spad_conv import Reduction, SpadConvTranspose3d, spad_max_pool3d
from spadnet.models.autoencoder import Encoder
from spadnet.models.vit import SpadViT


class Pyramid(nn.Module):
    """Four maps from four blocks of a ViT, resampled by SPAD transposed convolutions and pooling.

    Source: the adapter of BEiT and ViTDet, with spacing-aware strides.
    """

    def __init__(
        self,
        vit: SpadViT,
        *,
        out_indices: Sequence[int] = (3, 5, 7, 11),
        reduction: Reduction = "mean",
    ) -> None:
        """Build the pyramid.

        Args:
            vit: The encoder; what no map passes (final norm, classifier) is frozen.
            out_indices: Blocks whose output feeds strides 4, 8, 16, 32.
            reduction: How transposed convolutions fold depth taps.
        """
        super().__init__()
        if len(out_indices) != 4:
            raise ValueError(f"a pyramid has four levels, got {len(out_indices)} blocks")
        width = vit.embed_dim
        last = max(index % len(vit.blocks) for index in out_indices)
        for unused in (*vit.blocks[last + 1 :], vit.norm, vit.head):
            unused.requires_grad_(False)  # no map passes them: DDP must not wait for them
        self.vit = vit
        self.out_indices = tuple(out_indices)
        self.widths = (width,) * 4
        # GroupNorm with one channel a group is InstanceNorm that also takes a single position.
        self.norms = nn.ModuleList(nn.GroupNorm(width, width) for _ in range(4))
        self.up4_first = SpadConvTranspose3d(width, width, 2, stride=2, reduction=reduction)
        self.up4_norm = nn.GroupNorm(width, width)
        self.up4_act = nn.GELU()
        self.up4_second = SpadConvTranspose3d(width, width, 2, stride=2, reduction=reduction)
        self.up8 = SpadConvTranspose3d(width, width, 2, stride=2, reduction=reduction)

    def forward(self, x: Tensor, degree: int) -> list[Tensor]:
        """Return maps [B, C, d_i, H / s, W / s] for s = 4, 8, 16, 32 (patch size 16).

        Args:
            x: Volumes in [0, 1], [B, C_in, D, H, W].
            degree: Degree of anisotropy.
        """
        maps = self.vit.forward_intermediates(
            x, degree, indices=self.out_indices, intermediates_only=True
        )
        return self.resample(maps, degree)

    def resample(self, maps: Sequence[Tensor], degree: int) -> list[Tensor]:
        """Bring the outputs [B, C, d, h, w] of the four blocks to the strides of the pyramid."""
        level = self.vit.patch_embed.patch_size.bit_length() - 1  # halvings before the tokens
        f4, f8, f16, f32 = (norm(m) for norm, m in zip(self.norms, maps, strict=True))
        f4 = self.up4_act(self.up4_norm(self.up4_first(f4, max(degree - level + 1, 0))))
        f4 = self.up4_second(f4, max(degree - level + 2, 0))
        f8 = self.up8(f8, max(degree - level + 1, 0))
        return [f4, f8, f16, spad_max_pool3d(f32, max(degree - level, 0))]


class EncoderPyramid(nn.Module):
    """The maps that a tokenizer's encoder has anyway, at in-plane strides 4, 8 and 16."""

    def __init__(self, encoder: Encoder) -> None:
        """Build the pyramid.

        Args:
            encoder: The encoder; its first stride is 4.
        """
        super().__init__()
        if encoder.stem_stride != 4:
            raise ValueError(f"the encoder's first stride must be 4, got {encoder.stem_stride}")
        self.encoder = encoder
        downs = [encoder.stem, *encoder.downs]
        self.widths = tuple(getattr(down, "conv").weight.shape[0] for down in downs)  # noqa: B009

    def forward(self, x: Tensor, degree: int) -> list[Tensor]:
        """Return maps [B, C_i, d_i, H / s, W / s] for s = 4, 8, 16.

        Args:
            x: Volumes in [-1, 1], [B, C_in, D, H, W].
            degree: Degree of anisotropy.
        """
        *finer, last = self.encoder.embed_levels(x, degree)
        return [*finer, self.encoder.mix(last, degree)]
