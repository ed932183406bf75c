"""Sizes of the SPAD-ViT."""

from collections.abc import Sequence

from spadnet.models.pooling import GlobalPool
from spadnet.models.vit import SpadViT

POS_GRID = (5, 10, 10)


def spad_vit_tiny(
    *,
    in_chans: int = 1,
    num_classes: int = 0,
    depth: int = 12,
    pos_grid: Sequence[int] = POS_GRID,
    global_pool: GlobalPool = "token",
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
) -> SpadViT:
    """SPAD-ViT for small machines."""
    return SpadViT(
        in_chans=in_chans,
        num_classes=num_classes,
        embed_dim=192,
        depth=depth,
        num_heads=3,
        pos_grid=pos_grid,
        global_pool=global_pool,
        drop_rate=drop_rate,
        drop_path_rate=drop_path_rate,
    )


def spad_vit_small(
    *,
    in_chans: int = 1,
    num_classes: int = 0,
    depth: int = 12,
    pos_grid: Sequence[int] = POS_GRID,
    global_pool: GlobalPool = "token",
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
) -> SpadViT:
    """SPAD-ViT for one GPU."""
    return SpadViT(
        in_chans=in_chans,
        num_classes=num_classes,
        embed_dim=384,
        depth=depth,
        num_heads=6,
        pos_grid=pos_grid,
        global_pool=global_pool,
        drop_rate=drop_rate,
        drop_path_rate=drop_path_rate,
    )


def spad_vit_base(
    *,
    in_chans: int = 3,
    num_classes: int = 0,
    depth: int = 12,
    pos_grid: Sequence[int] = POS_GRID,
    global_pool: GlobalPool = "token",
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
) -> SpadViT:
    """SPAD-ViT as published, 94,930,944 parameters."""
    return SpadViT(
        in_chans=in_chans,
        num_classes=num_classes,
        embed_dim=768,
        depth=depth,
        num_heads=12,
        pos_grid=pos_grid,
        global_pool=global_pool,
        drop_rate=drop_rate,
        drop_path_rate=drop_path_rate,
    )


def spad_vit_large(
    *,
    in_chans: int = 3,
    num_classes: int = 0,
    depth: int = 24,
    pos_grid: Sequence[int] = POS_GRID,
    global_pool: GlobalPool = "token",
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
) -> SpadViT:
    """SPAD-ViT as published, 315,498,432 parameters."""
    return SpadViT(
        in_chans=in_chans,
        num_classes=num_classes,
        embed_dim=1024,
        depth=depth,
        num_heads=16,
        pos_grid=pos_grid,
        global_pool=global_pool,
        drop_rate=drop_rate,
        drop_path_rate=drop_path_rate,
    )
