"""Feature maps out of the middle of a transformer: which blocks, and in which form."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

TokenFormat = Literal["NCHW", "NLC"]
FeatureMap = Tensor | tuple[Tensor, Tensor]


def chosen_blocks(count: int, indices: int | Sequence[int] | None) -> list[int]:
    """Numbers of the blocks that ``indices`` means.

    Args:
        count: Number of blocks.
        indices: Blocks by number, negative ones from the end; the last n; or None for all.

    Raises:
        ValueError: If there is no such block.
    """
    if indices is None:
        return list(range(count))
    if isinstance(indices, int):
        if not 0 < indices <= count:
            raise ValueError(f"the last {indices} of {count} blocks do not exist")
        return list(range(count - indices, count))
    if not indices or any(not -count <= i < count for i in indices):
        raise ValueError(f"blocks are numbered 0 to {count - 1}, got {list(indices)}")
    return [i % count for i in indices]


def as_feature_map(tokens: Tensor, shape: Sequence[int], output_fmt: TokenFormat) -> Tensor:
    """Bring tokens [B, L, C] into a form.

    Args:
        tokens: Tokens of the patches.
        shape: Token grid, (D, H, W) or (H, W).
        output_fmt: ``"NCHW"`` for a map [B, C, *shape], ``"NLC"`` for the tokens as they are.
    """
    if output_fmt == "NLC":
        return tokens
    if output_fmt != "NCHW":
        raise ValueError(f"output_fmt must be 'NCHW' or 'NLC', got {output_fmt!r}")
    return tokens.transpose(1, 2).unflatten(2, tuple(shape))
