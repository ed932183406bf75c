"""Rotary position embedding for 3D token grids.

In-plane the angles are those of EVA-02: the first half turns with y, the second with x. Depth adds
to both halves with frequencies of another base and odd exponents, so that no two positions share a
rotation, and a single slice is exactly the 2D case.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def rotary_angles(
    grid_size: Sequence[int],
    head_dim: int,
    *,
    base: float = 10000.0,
    depth_base: float = 2333.0,
    rescale: Sequence[int] = (-1, -1, -1),
    device: torch.device | None = None,
) -> Tensor:
    """Angles by which each token's query and key channels turn.

    Args:
        grid_size: Token grid (D, H, W).
        head_dim: Width d of an attention head, a multiple of 4.
        base: In-plane base; frequencies are ``base ** (-4 i / d)``, i = 0 .. d / 4 - 1.
        depth_base: Depth base; frequencies are ``depth_base ** (-2 (2 i + 1) / d)``.
        rescale: Number of positions that an axis is mapped to, -1 to count tokens, 0 to leave
            the axis unturned.
        device: Where to compute.

    Returns:
        Angles, [D * H * W, d], each repeated for a pair of adjacent channels.
    """
    if head_dim % 4:
        raise ValueError(f"head_dim must be a multiple of 4, got {head_dim}")
    count = head_dim // 4
    index = torch.arange(count, device=device, dtype=torch.float32)
    in_plane = base ** (-2 * index / (2 * count))
    depth = depth_base ** (-(2 * index + 1) / (2 * count))
    z, y, x = (
        torch.arange(size, device=device, dtype=torch.float32)
        * (positions / size if positions >= 0 else 1.0)
        for size, positions in zip(grid_size, rescale, strict=True)
    )
    shape = (*grid_size, count)
    turn_z = (z[:, None] * depth).view(-1, 1, 1, count).expand(shape)
    turn_y = (y[:, None] * in_plane).view(1, -1, 1, count).expand(shape)
    turn_x = (x[:, None] * in_plane).view(1, 1, -1, count).expand(shape)
    angles = torch.cat((turn_z + turn_y, turn_z + turn_x), dim=-1)
    return angles.flatten(0, 2).repeat_interleave(2, dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn adjacent channel pairs of [..., d] by the angles whose cosine and sine are given."""
    turned = torch.stack((-x[..., 1::2], x[..., 0::2]), dim=-1).flatten(-2)
    return x * cos + turned * sin


class RotaryEmbedding3d(nn.Module):
    """Cosines and sines for a token grid, computed at each call and never stored."""

    def __init__(
        self,
        head_dim: int,
        *,
        base: float = 10000.0,
        depth_base: float = 2333.0,
        rescale: Sequence[int] = (-1, -1, -1),
    ) -> None:
        """Build the embedding, see :func:`rotary_angles`."""
        super().__init__()
        self.head_dim = head_dim
        self.base = base
        self.depth_base = depth_base
        self.rescale = tuple(rescale)

    def forward(self, grid_size: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
        """Return cosine and sine, [L, d] each, for a token grid (D, H, W)."""
        angles = rotary_angles(
            grid_size,
            self.head_dim,
            base=self.base,
            depth_base=self.depth_base,
            rescale=self.rescale,
            device=device,
        )
        return angles.cos(), angles.sin()
