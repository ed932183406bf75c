"""Spacing-aware patch embedding and the learned position grid."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spadnet.layers.spad_conv import fold_depth
from spadnet.spacing import depth_stride


class PatchEmbed(nn.Module):
    """Linear embedding of patches of k x k pixels and as many slices as are k pixels thick.

    The isotropic kernel [C, C_in, k, k, k] is folded along depth by the degree. As kernel equals
    stride, a matrix product does it, several times faster than a convolution on CPU.
    """

    def __init__(self, in_chans: int, embed_dim: int, *, patch_size: int = 16) -> None:
        """Build the layer.

        Args:
            in_chans: Channels of the image.
            embed_dim: Token width.
            patch_size: k, a power of two.
        """
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv3d(in_chans, embed_dim, patch_size, patch_size)

    def grid_size(self, size: Sequence[int], degree: int) -> tuple[int, int, int]:
        """Return the token grid of a volume of (D, H, W) voxels, which must be multiples."""
        steps = (depth_stride(self.patch_size, degree), self.patch_size, self.patch_size)
        if any(n % step or n == 0 for n, step in zip(size, steps, strict=True)):
            raise ValueError(
                f"size {tuple(size)} is not a multiple of {steps}, which degree {degree} requires"
            )
        return size[0] // steps[0], size[1] // steps[1], size[2] // steps[2]

    def patchify(self, x: Tensor, degree: int) -> Tensor:
        """Cut [B, C_in, D, H, W] into patches [B, L, C_in * p_z * k * k]."""
        grid = self.grid_size(x.shape[-3:], degree)
        step, size = depth_stride(self.patch_size, degree), self.patch_size
        x = x.unflatten(4, (grid[2], size)).unflatten(3, (grid[1], size))
        x = x.unflatten(2, (grid[0], step))  # [B, C, d, p_z, h, k, w, k]
        return x.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4).flatten(1, 3)

    def unpatchify(self, patches: Tensor, grid: Sequence[int], degree: int) -> Tensor:
        """Put patches [B, L, C_in * p_z * k * k] of a grid together again, [B, C_in, D, H, W]."""
        step, size = depth_stride(self.patch_size, degree), self.patch_size
        x = patches.unflatten(1, tuple(grid)).unflatten(4, (-1, step, size, size))
        x = x.permute(0, 4, 1, 5, 2, 6, 3, 7)  # [B, C, d, p_z, h, k, w, k]
        return x.flatten(6).flatten(4, 5).flatten(2, 3)

    def project(self, patches: Tensor, degree: int) -> Tensor:
        """Embed patches [B, L, C_in * p_z * k * k] as tokens [B, L, C]."""
        weight = fold_depth(self.proj.weight, stride=self.patch_size, degree=degree)
        return F.linear(patches, weight.flatten(1), self.proj.bias)

    def forward(self, x: Tensor, degree: int) -> Tensor:
        """Embed a volume [B, C_in, D, H, W] as tokens [B, L, C]."""
        return self.project(self.patchify(x, degree), degree)


def resample_position_grid(grid: Tensor, size: Sequence[int]) -> Tensor:
    """Resample a learned position grid to another token grid: area down, then trilinear up.

    Both are separable, so that each axis is one product with a matrix. Nothing branches on sizes:
    one compiled or exported graph serves every token grid.

    Args:
        grid: Positions, [1, C, D, H, W].
        size: Token grid (D, H, W) wanted.

    Returns:
        Positions, [1, C, *size].
    """
    z, y, x = (
        _axis_weights(source, target, device=grid.device).to(grid.dtype)
        for source, target in zip(grid.shape[-3:], size, strict=True)
    )
    # Channels last: three products whose inner stretch is long.
    grid = grid[0].movedim(0, -1)  # [D, H, W, C]
    kind = "cpu" if grid.is_meta else grid.device.type  # there is no autocast without memory
    with torch.autocast(kind, enabled=False):  # positions keep their precision
        grid = (z @ grid.flatten(1)).unflatten(1, grid.shape[1:])
        grid = (y @ grid.flatten(2)).unflatten(2, grid.shape[2:])
        return (x @ grid).movedim(-1, 0).unsqueeze(0)


def _axis_weights(source: int, target: int, *, device: torch.device) -> Tensor:
    """Weights [target, source] that average ``source`` positions down or interpolate them up."""
    index = torch.arange(target, device=device)[:, None]
    place = torch.arange(source, device=device)
    first = index * source // target
    last = -((index + 1) * source // -target)  # rounded up
    down = ((place >= first) & (place < last)).float() / (last - first)
    centre = ((index + 0.5) * source / target - 0.5).clamp(0, source - 1)
    up = (1 - (place - centre).abs()).clamp_min(0)
    return torch.where(torch.scalar_tensor(target, device=device) < source, down, up)
