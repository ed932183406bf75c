"""Which tokens a masked image model sees. The reference hides 55 % of them at random."""

import torch
from torch import Tensor


def num_visible(num_tokens: int, mask_ratio: float) -> int:
    """Tokens that stay visible: the whole part of their share, but one at least.

    >>> [num_visible(count, 0.55) for count in (500, 8, 4)]
    [225, 3, 1]
    """
    if num_tokens < 2:
        raise ValueError(f"masking needs at least 2 tokens, got {num_tokens}")
    if not 0 < mask_ratio < 1:
        raise ValueError(f"mask_ratio must lie between 0 and 1, got {mask_ratio}")
    return min(max(int(num_tokens * (1 - mask_ratio) + 1e-6), 1), num_tokens - 1)


def random_visible_index(
    batch: int,
    num_tokens: int,
    *,
    mask_ratio: float,
    generator: torch.Generator,
    rank: int = 0,
    world_size: int = 1,
) -> Tensor:
    """Draw the tokens that each sample may see.

    Args:
        batch: Samples of this process.
        num_tokens: Tokens per sample, without a class token.
        mask_ratio: Share of hidden tokens.
        generator: Source of randomness, alike in all processes; the index is on its device.
        rank: Of this process; its samples follow those of the ranks before.
        world_size: Processes that share the draw, with as many samples each.

    Returns:
        Sorted positions, [B, V], int64.
    """
    total = batch * world_size
    noise = torch.rand(total, num_tokens, generator=generator, device=generator.device)
    noise = noise[rank * batch : (rank + 1) * batch]
    kept = noise.argsort(dim=1)[:, : num_visible(num_tokens, mask_ratio)]
    return kept.sort(dim=1).values
