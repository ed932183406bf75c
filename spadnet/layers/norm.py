"""Normalisation over channels of channel-first volumes."""

import torch.nn.functional as F
from torch import Tensor, nn


class ChannelLayerNorm(nn.LayerNorm):
    """LayerNorm over the channels of [B, C, D, H, W]."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each position over its channels."""
        x = x.movedim(1, -1)
        x = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.movedim(-1, 1)
