"""Encoder and decoder of the visual tokenizer: SPAD convolutions with a total stride of 16.

Source: SPAD-Nets (arXiv 2312.07630) and the published tokenizer.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from spadnet.layers.norm import ChannelLayerNorm
from spadnet.layers.recompute import run_layer
from spadnet.layers.spad_conv import Reduction, SpadConv3d, SpadConvTranspose3d

NUM_GROUPS = 8


class Downsample(nn.Module):
    """SPAD convolution with kernel = stride, channel LayerNorm, GELU."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int) -> None:
        super().__init__()
        self.conv = SpadConv3d(in_channels, out_channels, stride, stride=stride)
        self.norm = ChannelLayerNorm(out_channels)
        self.act = nn.GELU()

    def forward(self, x: Tensor, degree: int) -> Tensor:
        return self.act(self.norm(self.conv(x, degree)))


class ConvBlock(nn.Module):
    """3x3x3 SPAD convolution, GroupNorm, LeakyReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = SpadConv3d(in_channels, out_channels, 3)
        self.norm = nn.GroupNorm(NUM_GROUPS, out_channels)
        self.act = nn.LeakyReLU()

    def forward(self, x: Tensor, degree: int) -> Tensor:
        return self.act(self.norm(self.conv(x, degree)))


class Upsample(nn.Module):
    """Transposed SPAD convolution with kernel = stride = 2, then a :class:`ConvBlock`."""

    def __init__(self, in_channels: int, out_channels: int, *, reduction: Reduction) -> None:
        super().__init__()
        self.up = SpadConvTranspose3d(in_channels, out_channels, 2, stride=2, reduction=reduction)
        self.block = ConvBlock(out_channels, out_channels)

    def forward(self, x: Tensor, degree: int) -> Tensor:
        return self.block(self.up(x, degree), degree)


class Encoder(nn.Module):
    """Turn a volume into a grid of latent vectors, 16 times coarser in-plane."""

    def __init__(self, in_chans: int, widths: Sequence[int], *, stem_stride: int = 4) -> None:
        """Build the encoder.

        Args:
            in_chans: Channels of the volume.
            widths: Channels after the stem and after each further halving.
            stem_stride: Stride of the first convolution, a power of two.
        """
        super().__init__()
        self.stem_stride = stem_stride
        self.stem = Downsample(in_chans, widths[0], stride=stem_stride)
        self.downs = nn.ModuleList(Downsample(a, b, stride=2) for a, b in pairwise(widths))
        self.blocks = nn.ModuleList(ConvBlock(widths[-1], widths[-1]) for _ in range(2))
        self.grad_checkpointing = False

    def forward(self, x: Tensor, degree: int) -> Tensor:
        """Encode [B, C_in, D, H, W] as [B, C, D / depth_stride, H / 16, W / 16]."""
        return self.mix(self.embed_patches(x, degree), degree)

    def embed_patches(self, x: Tensor, degree: int) -> Tensor:
        """Embed [B, C_in, D, H, W] as :meth:`forward`, each patch for itself."""
        return self.embed_levels(x, degree)[-1]

    def embed_levels(self, x: Tensor, degree: int) -> list[Tensor]:
        """Embed as :meth:`embed_patches` and return what is after the stem and each halving."""
        again = self.grad_checkpointing and self.training
        levels = [run_layer(self.stem, x, degree, again=again)]
        level = self.stem_stride.bit_length() - 1
        for down in self.downs:
            levels.append(run_layer(down, levels[-1], max(degree - level, 0), again=again))
            level += 1
        return levels

    def mix(self, z: Tensor, degree: int) -> Tensor:
        """Let embedded patches [B, C, d, h, w] see their neighbours and the whole's statistics."""
        level = self.stem_stride.bit_length() - 1 + len(self.downs)
        again = self.grad_checkpointing and self.training
        for block in self.blocks:
            z = run_layer(block, z, max(degree - level, 0), again=again)
        return z


class Decoder(nn.Module):
    """Turn a grid of latent vectors back into a volume; mirrors :class:`Encoder`."""

    def __init__(
        self,
        out_chans: int,
        widths: Sequence[int],
        *,
        in_chans: int | None = None,
        stem_stride: int = 4,
        reduction: Reduction = "mean",
    ) -> None:
        """Build the decoder.

        Args:
            out_chans: Channels of the volume.
            widths: Channels from fine to coarse, as for the encoder.
            in_chans: Width of a latent vector, the last of ``widths`` by default.
            stem_stride: Stride of the last transposed convolution, a power of two.
            reduction: How transposed convolutions fold depth taps.
        """
        super().__init__()
        self.stem_stride = stem_stride
        descending = list(reversed(widths))
        channels = [in_chans or descending[0], descending[0], descending[0]]
        self.blocks = nn.ModuleList(ConvBlock(a, b) for a, b in pairwise(channels))
        self.ups = nn.ModuleList(
            Upsample(a, b, reduction=reduction) for a, b in pairwise(descending)
        )
        self.head = SpadConvTranspose3d(
            descending[-1], out_chans, stem_stride, stride=stem_stride, reduction=reduction
        )
        self.grad_checkpointing = False

    def forward(self, z: Tensor, degree: int) -> Tensor:
        """Decode [B, C, d, h, w] as [B, C_out, D, H, W]; ``degree`` is the one of the volume."""
        level = self.stem_stride.bit_length() - 1 + len(self.ups)
        again = self.grad_checkpointing and self.training
        for block in self.blocks:
            z = run_layer(block, z, max(degree - level, 0), again=again)
        for up in self.ups:
            level -= 1
            z = run_layer(up, z, max(degree - level, 0), again=again)
        return self.head(z, degree)


@torch.no_grad()
def identity_start(module: nn.Module) -> None:
    """Let every 3x3x3 convolution of ``module`` start as the identity plus small noise."""
    for block in module.modules():
        if isinstance(block, ConvBlock):
            weight = block.conv.weight
            weight.mul_(0.1)
            weight[:, :, 1, 1, 1] += torch.eye(*weight.shape[:2])
