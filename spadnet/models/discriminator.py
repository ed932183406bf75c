"""Patch discriminator of SPAD convolutions: judges overlapping patches of a volume of any degree.

Source: PatchGAN of arXiv 1611.07004 in the form VQGAN uses (arXiv 2012.09841), in 3D, with
GroupNorm in place of BatchNorm: batches are small and differ in degree.
"""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from spadnet.layers.spad_conv import SpadConv3d

NUM_GROUPS = 8


class DiscriminatorBlock(nn.Module):
    """4x4x4 SPAD convolution of stride 2, GroupNorm where asked for, LeakyReLU."""

    def __init__(self, in_channels: int, out_channels: int, *, norm: bool) -> None:
        super().__init__()
        self.conv = SpadConv3d(in_channels, out_channels, 4, stride=2, bias=not norm)
        self.norm = nn.GroupNorm(NUM_GROUPS, out_channels) if norm else nn.Identity()
        self.act = nn.LeakyReLU(0.2)

    def forward(self, x: Tensor, degree: int) -> Tensor:
        return self.act(self.norm(self.conv(x, degree)))


class SpadDiscriminator(nn.Module):
    """Tell images from reconstructions, patch by patch.

    >>> import torch
    >>> discriminator = SpadDiscriminator(in_chans=1)
    >>> discriminator(torch.rand(2, 1, 8, 64, 64), degree=1).shape
    torch.Size([2, 1, 2, 8, 8])
    """

    def __init__(
        self,
        in_chans: int = 1,
        widths: Sequence[int] = (32, 64, 128),
        *,
        use_spectral_norm: bool = False,
    ) -> None:
        """Build the discriminator; the default sees patches 38 pixels wide.

        Args:
            in_chans: Channels of the volume.
            widths: Channels at strides 2, 4, 8, ...; multiples of 8 from the second on.
            use_spectral_norm: Whether to bound each convolution's largest singular value (arXiv
                1802.05957).
        """
        super().__init__()
        if not widths or any(width % NUM_GROUPS for width in widths[1:]):
            raise ValueError(
                f"widths from the second on must be multiples of {NUM_GROUPS}, got {tuple(widths)}"
            )
        self.in_chans = in_chans
        channels = [in_chans, *widths]
        self.blocks = nn.ModuleList(
            DiscriminatorBlock(a, b, norm=level > 0)  # the first sees intensities: keep their scale
            for level, (a, b) in enumerate(pairwise(channels))
        )
        self.head = SpadConv3d(widths[-1], 1, 3)
        if use_spectral_norm:
            for module in self.modules():
                if isinstance(module, SpadConv3d):
                    spectral_norm(module)

    def forward(self, x: Tensor, degree: int) -> Tensor:
        """Judge volumes.

        Args:
            x: Images or reconstructions in [0, 1], [B, C, D, H, W].
            degree: Degree of anisotropy of the volumes.

        Returns:
            Logits, higher for images, [B, 1, d, H / 2**n, W / 2**n] for n widths; d = D at a degree
            of n and more.
        """
        if x.shape[1] != self.in_chans:
            raise ValueError(f"the discriminator takes {self.in_chans} channels, got {x.shape[1]}")
        x = 2 * x - 1
        level = 0
        for block in self.blocks:
            x = block(x, max(degree - level, 0))
            level += 1
        return self.head(x, max(degree - level, 0))
