"""Encoder and decoder of a spacing-aware U-Net, level by level.

Source: nnU-Net (Isensee et al., 2021) made spacing-aware as in SPAD-Nets (arXiv 2312.07630).
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from spadnet.layers.norm import InstanceNorm
from spadnet.layers.recompute import run_layer
from spadnet.layers.spad_conv import SpadConv3d, SpadConvTranspose3d

NEGATIVE_SLOPE = 0.01


class ConvNormAct(nn.Module):
    """3x3x3 SPAD convolution, InstanceNorm, LeakyReLU."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1) -> None:
        super().__init__()
        # No bias: the norm would take it away again.
        self.conv = SpadConv3d(in_channels, out_channels, 3, stride=stride, bias=False)
        self.norm = InstanceNorm(out_channels)
        self.act = nn.LeakyReLU(NEGATIVE_SLOPE)

    def forward(self, x: Tensor, degree: int) -> Tensor:
        return self.act(self.norm(self.conv(x, degree)))


class Stage(nn.Module):
    """Convolutions of one level; the first may halve the volume."""

    def __init__(
        self, in_channels: int, out_channels: int, *, num_convs: int, stride: int = 1
    ) -> None:
        super().__init__()
        first = ConvNormAct(in_channels, out_channels, stride=stride)
        rest = (ConvNormAct(out_channels, out_channels) for _ in range(num_convs - 1))
        self.blocks = nn.ModuleList([first, *rest])
        self.halvings = stride.bit_length() - 1

    def forward(self, x: Tensor, degree: int) -> Tensor:
        """Convolve; ``degree`` is the one of the input."""
        for i, block in enumerate(self.blocks):
            x = block(x, degree if i == 0 else max(degree - self.halvings, 0))
        return x


class UNetEncoder(nn.Module):
    """One map a level, each half as large in-plane as the one before."""

    def __init__(self, in_chans: int, features: Sequence[int], num_convs: Sequence[int]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            Stage(before, width, num_convs=count, stride=2 if level else 1)
            for level, ((before, width), count) in enumerate(
                zip(pairwise((in_chans, *features)), num_convs, strict=True)
            )
        )
        self.grad_checkpointing = False

    def forward(self, x: Tensor, degree: int) -> list[Tensor]:
        """Return maps from fine to coarse of a volume [B, C_in, D, H, W]."""
        maps: list[Tensor] = []
        for level, stage in enumerate(self.stages):
            own = max(degree - max(level - 1, 0), 0)  # where the halving has yet to happen
            x = run_layer(stage, x, own, again=self.grad_checkpointing and self.training)
            maps.append(x)
        return maps


class UNetDecoder(nn.Module):
    """Upsample, join with the encoder's map and convolve, level by level; logits at each level.

    Attributes:
        deep_supervision: Whether all levels give logits, or the finest alone.
    """

    def __init__(
        self,
        features: Sequence[int],
        num_convs: Sequence[int],
        *,
        num_classes: int,
        deep_supervision: bool,
    ) -> None:
        super().__init__()
        self.deep_supervision = deep_supervision
        # Lists are ordered by level, the finest first, as the encoder's.
        self.ups = nn.ModuleList(
            SpadConvTranspose3d(coarse, fine, 2, stride=2) for fine, coarse in pairwise(features)
        )
        self.stages = nn.ModuleList(
            Stage(2 * width, width, num_convs=count)
            for width, count in zip(features[:-1], num_convs, strict=True)
        )
        self.heads = nn.ModuleList(voxel_head(width, num_classes) for width in features[:-1])
        self.grad_checkpointing = False

    def forward_features(
        self, maps: Sequence[Tensor], degree: int, out_degree: int | None = None
    ) -> list[Tensor]:
        """Return the decoder's maps from fine to coarse, given the encoder's.

        Args:
            maps: Of the encoder, the finest first.
            degree: Of the encoder's input.
            out_degree: Of what is decoded; the encoder's slices are repeated where it is less.
        """
        target = degree if out_degree is None else out_degree
        x = _repeat_slices(maps[-1], degree, target, level=len(self.stages))
        decoded = []
        for level in reversed(range(len(self.stages))):
            own = max(target - level, 0)
            skip = _repeat_slices(maps[level], degree, target, level=level)
            x = torch.cat((self.ups[level](x, own), skip), dim=1)
            x = run_layer(
                self.stages[level], x, own, again=self.grad_checkpointing and self.training
            )
            decoded.append(x)
        return decoded[::-1]

    def forward_head(self, decoded: Sequence[Tensor]) -> Tensor | list[Tensor]:
        """Return logits of the finest level, or of all of them under deep supervision."""
        if not self.deep_supervision:
            return self.heads[0](decoded[0])
        return [head(x) for head, x in zip(self.heads, decoded, strict=True)]

    def forward(self, maps: Sequence[Tensor], degree: int) -> Tensor | list[Tensor]:
        """Turn the encoder's maps into logits."""
        return self.forward_head(self.forward_features(maps, degree))


def _repeat_slices(x: Tensor, degree: int, out_degree: int, *, level: int) -> Tensor:
    """Repeat the slices of an encoder's map until they are as thick as the decoder's."""
    halvings = max(degree - level, 0) - max(out_degree - level, 0)
    return x.repeat_interleave(2**halvings, dim=2) if halvings else x


def voxel_head(width: int, num_classes: int) -> nn.Conv3d:
    """Logits of a decoder's map."""
    return nn.Conv3d(width, num_classes, 1)


@torch.no_grad()
def init_he(module: nn.Module) -> None:
    """Start a convolution as nnU-Net does: He normal for LeakyReLU, biases zero.

    Folding sums independent taps, which leaves the variance that He asks of the folded kernel.
    """
    if isinstance(module, SpadConv3d | SpadConvTranspose3d | nn.Conv3d):
        nn.init.kaiming_normal_(module.weight, a=NEGATIVE_SLOPE)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
