"""Encoder and decoder of a VQGAN made of SPAD convolutions: residual blocks, attention, halvings.

With kernels inflated from 2D it computes at degree 5 what the 2D VQGAN computes.

Source: VQGAN, arXiv 2012.09841; its first convolution is as wide as its first stage.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from spadnet.layers.recompute import run_layer
from spadnet.layers.spad_conv import SpadConv3d, fold_depth, spad_interpolate
from spadnet.spacing import depth_stride

NUM_GROUPS = 32
NORM_EPS = 1e-6


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(NUM_GROUPS, channels, eps=NORM_EPS)


class ResidualBlock(nn.Module):
    """Twice GroupNorm, SiLU and a 3x3x3 SPAD convolution, added to the input."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = _norm(in_channels)
        self.conv1 = SpadConv3d(in_channels, out_channels, 3)
        self.norm2 = _norm(out_channels)
        self.conv2 = SpadConv3d(out_channels, out_channels, 3)
        self.shortcut = (
            None if in_channels == out_channels else SpadConv3d(in_channels, out_channels, 1)
        )

    def forward(self, x: Tensor, degree: int) -> Tensor:
        branch = self.conv1(F.silu(self.norm1(x)), degree)
        branch = self.conv2(F.silu(self.norm2(branch)), degree)
        return branch + (x if self.shortcut is None else self.shortcut(x, degree))


class VolumeAttention(nn.Module):
    """Self-attention of one head among all positions of a volume, added to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).unsqueeze(1).chunk(3, dim=-1)
        tokens = self.proj(F.scaled_dot_product_attention(q, k, v).squeeze(1))
        return x + tokens.transpose(1, 2).unflatten(2, x.shape[2:])


class Halve(nn.Module):
    """3x3x3 convolution of stride 2 that pads the far sides alone."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        reference = nn.Conv3d(channels, channels, 3)
        self.weight, self.bias = reference.weight, reference.bias

    def forward(self, x: Tensor, degree: int) -> Tensor:
        """Halve [B, C, D, H, W] in-plane, and along depth at degree 0."""
        weight = fold_depth(self.weight, stride=2, degree=degree)
        x = F.pad(x, (0, 1, 0, 1, 0, int(degree == 0)))
        return F.conv3d(x, weight, self.bias, stride=(depth_stride(2, degree), 2, 2))


class Stage(nn.Module):
    """Residual blocks of one resolution, each followed by attention where there is some."""

    def __init__(
        self, in_channels: int, out_channels: int, *, num_blocks: int, attends: bool
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            ResidualBlock(out_channels if i else in_channels, out_channels)
            for i in range(num_blocks)
        )
        self.attention = nn.ModuleList(
            VolumeAttention(out_channels) for _ in range(num_blocks * attends)
        )

    def forward(self, x: Tensor, degree: int) -> Tensor:
        for i, block in enumerate(self.blocks):
            x = block(x, degree)
            if len(self.attention):
                x = self.attention[i](x)
        return x


class Middle(nn.Module):
    """Residual block, attention, residual block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = ResidualBlock(channels, channels)
        self.attention = VolumeAttention(channels)
        self.second = ResidualBlock(channels, channels)

    def forward(self, x: Tensor, degree: int) -> Tensor:
        return self.second(self.attention(self.first(x, degree)), degree)


class VqganEncoder(nn.Module):
    """Turn a volume into a grid of latent vectors, ``2 ** (len(widths) - 1)`` times coarser."""

    def __init__(
        self,
        in_chans: int,
        widths: Sequence[int],
        *,
        num_blocks: int,
        attention_levels: Sequence[int],
        code_dim: int,
    ) -> None:
        """Build the encoder.

        Args:
            in_chans: Channels of the volume.
            widths: Channels of each stage; every stage but the last is followed by a halving.
            num_blocks: Residual blocks in each stage.
            attention_levels: Numbers of the stages whose blocks are followed by attention.
            code_dim: Width of a latent vector.
        """
        super().__init__()
        self.grad_checkpointing = False
        self.stem = SpadConv3d(in_chans, widths[0], 3)
        self.stages = nn.ModuleList(
            Stage(
                widths[max(level - 1, 0)],
                width,
                num_blocks=num_blocks,
                attends=level in attention_levels,
            )
            for level, width in enumerate(widths)
        )
        self.downs = nn.ModuleList(Halve(width) for width in widths[:-1])
        self.middle = Middle(widths[-1])
        self.norm = _norm(widths[-1])
        self.head = SpadConv3d(widths[-1], code_dim, 3)

    def forward(self, x: Tensor, degree: int) -> Tensor:
        """Encode [B, C_in, D, H, W] as [B, code_dim, d, h, w]."""
        again = self.grad_checkpointing and self.training
        x = self.stem(x, degree)
        pending = degree
        for level, stage in enumerate(self.stages):
            pending = max(degree - level, 0)
            x = run_layer(stage, x, pending, again=again)
            if level < len(self.downs):
                x = self.downs[level](x, pending)
        return self.head(F.silu(self.norm(self.middle(x, pending))), pending)


class VqganDecoder(nn.Module):
    """Turn a grid of latent vectors back into a volume; mirrors :class:`VqganEncoder`."""

    def __init__(
        self,
        out_chans: int,
        widths: Sequence[int],
        *,
        num_blocks: int,
        attention_levels: Sequence[int],
        code_dim: int,
    ) -> None:
        """Build the decoder; arguments are those of the encoder, from fine to coarse."""
        super().__init__()
        self.grad_checkpointing = False
        self.project = SpadConv3d(code_dim, code_dim, 1)
        self.stem = SpadConv3d(code_dim, widths[-1], 3)
        self.middle = Middle(widths[-1])
        last = len(widths) - 1
        self.stages = nn.ModuleList(
            Stage(
                widths[min(level + 1, last)],
                width,
                num_blocks=num_blocks + 1,
                attends=level in attention_levels,
            )
            for level, width in enumerate(widths)
        )
        self.ups = nn.ModuleList(SpadConv3d(width, width, 3) for width in widths[1:])
        self.norm = _norm(widths[0])
        self.head = SpadConv3d(widths[0], out_chans, 3)

    def forward(self, z: Tensor, degree: int) -> Tensor:
        """Decode [B, code_dim, d, h, w] as [B, C_out, D, H, W]; ``degree`` is the volume's."""
        again = self.grad_checkpointing and self.training
        last = len(self.stages) - 1
        pending = max(degree - last, 0)
        z = self.middle(self.stem(self.project(z, pending), pending), pending)
        for level in reversed(range(len(self.stages))):
            z = run_layer(self.stages[level], z, max(degree - level, 0), again=again)
            if level:
                finer = max(degree - level + 1, 0)
                z = self.ups[level - 1](spad_interpolate(z, finer, mode="nearest"), finer)
        return self.head(F.silu(self.norm(z)), degree)
