"""What stands for a whole image: one of a ViT's tokens, or statistics of those of its patches."""

from typing import Literal, get_args

import torch
from torch import Tensor

GlobalPool = Literal["token", "avg", "avgstd", ""]

VARIANCE_EPS = 1e-6  # the root has no gradient where all tokens are alike


def known_pool(pool: GlobalPool, *, norm_after_pool: bool) -> GlobalPool:
    """Refuse pools that are unknown, or that a norm of the token width cannot follow."""
    if pool not in get_args(GlobalPool):
        *names, last = map(repr, get_args(GlobalPool))
        raise ValueError(f"global_pool must be {', '.join(names)} or {last}, got {pool!r}")
    if pool == "avgstd" and norm_after_pool:
        raise ValueError("global_pool='avgstd' cannot have a norm after it (norm_after_pool)")
    return pool


def pooled_width(pool: GlobalPool, embed_dim: int) -> int:
    """Width of what :func:`pool_tokens` gives.

    >>> pooled_width("avgstd", 192)
    384
    """
    return 2 * embed_dim if pool == "avgstd" else embed_dim


def pool_tokens(x: Tensor, pool: GlobalPool, *, num_prefix_tokens: int) -> Tensor:
    """Pool tokens.

    Source of ``"avgstd"``: statistics pooling, Snyder et al., "X-vectors", ICASSP 2018.

    Args:
        x: Class token, registers and patch tokens, [B, P + L, C].
        pool: ``"token"`` for the class token, ``"avg"`` for the mean of the patch tokens,
            ``"avgstd"`` for their mean and standard deviation, ``""`` for all tokens.
        num_prefix_tokens: P, class token and registers.

    Returns:
        [B, C], [B, 2C] for ``"avgstd"``, or [B, P + L, C].
    """
    if pool == "":
        return x
    if pool == "token":
        return x[:, 0]
    patches = x[:, num_prefix_tokens:]
    if pool == "avg":
        return patches.mean(1)
    spread = (patches.var(1, correction=0) + VARIANCE_EPS).sqrt()
    return torch.cat([patches.mean(1), spread], dim=1)
