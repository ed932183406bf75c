"""First weights of a vision transformer, as in BEiT and EVA."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from spadnet.layers.block import Block


def init_linear(layer: nn.Linear) -> None:
    """Truncated normal weights and no bias."""
    nn.init.trunc_normal_(layer.weight, std=0.02)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def init_transformer(
    model: nn.Module, blocks: nn.ModuleList, *, tokens: Iterable[Tensor | None]
) -> None:
    """Truncated normal weights, residual branches scaled down by their depth.

    Args:
        model: The whole model; every linear layer of it starts afresh.
        blocks: Its blocks, in order.
        tokens: Learned tokens and positions; None is passed over.
    """
    if next(model.parameters()).is_meta:  # the weights are about to be read
        return
    for module in model.modules():
        if isinstance(module, nn.Linear):
            init_linear(module)
    for index, block in enumerate(blocks, start=1):
        assert isinstance(block, Block)
        with torch.no_grad():
            block.attn.proj.weight.div_((2 * index) ** 0.5)
            block.mlp.w3.weight.div_((2 * index) ** 0.5)
    for token in tokens:
        if token is not None:
            nn.init.trunc_normal_(token, std=0.02)
