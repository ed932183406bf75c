"""Normalisation over channels of channel-first volumes."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ChannelLayerNorm(nn.LayerNorm):
    """LayerNorm over the channels of [B, C, D, H, W]."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each position over its channels."""
        x = x.movedim(1, -1)
        x = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.movedim(-1, 1)


class InstanceNorm(nn.GroupNorm):
    """InstanceNorm of [B, C, D, H, W] with scale and shift, which also takes a single position."""

    def __init__(self, num_channels: int) -> None:
        """Build the layer."""
        super().__init__(num_channels, num_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each channel of each volume over its positions."""
        # On CPU the kernel for channels last loses two digits more. The module's own forward
        # refuses a single position; its norm is the shift.
        x = x.contiguous()
        return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)
