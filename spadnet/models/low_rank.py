"""Low-rank adaptation (LoRA, arXiv 2106.09685): frozen matrices with a small learned correction.

The correction is a parametrisation of the weight. peft (0.21) wraps layers, for its
``target_parameters`` as well: attention reads the weight of queries, keys and values itself, to
give keys no bias, so that a wrapper's corrections get no gradient and no error tells of it. peft
also brings transformers and accelerate, 150 MB that nothing else here needs.
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from spadnet.models.vit import SpadViT


class LowRank(nn.Module):
    """Adds ``scale * up @ down`` to a weight; it starts as nothing."""

    def __init__(self, weight: Tensor, *, rank: int, scale: float) -> None:
        """Build the correction.

        Args:
            weight: Of a linear layer, [C_out, C_in].
            rank: Inner width.
            scale: Factor on the correction.
        """
        super().__init__()
        out_features, in_features = weight.shape
        self.scale = scale
        self.down = nn.Parameter(torch.empty(rank, in_features))
        self.up = nn.Parameter(torch.zeros(out_features, rank))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the corrected weight, [C_out, C_in]."""
        return weight + self.scale * (self.up @ self.down)


def add_low_rank(vit: SpadViT, *, rank: int, alpha: float | None = None) -> None:
    """Freeze an encoder but its head, and give all linear layers of its blocks a correction.

    Args:
        vit: Changed in place.
        rank: Inner width of the corrections.
        alpha: Over the rank, the factor on the corrections; by default twice the rank.
    """
    if rank < 1:
        raise ValueError(f"the rank must be positive, got {rank}")
    scale = 2.0 if alpha is None else alpha / rank
    for name, parameter in vit.named_parameters():
        parameter.requires_grad_(name.startswith("head."))
    for layer in vit.blocks.modules():
        if isinstance(layer, nn.Linear):
            correction = LowRank(layer.weight, rank=rank, scale=scale)
            parametrize.register_parametrization(layer, "weight", correction)


def merge_low_rank(model: nn.Module) -> nn.Module:
    """A copy with all corrections added to their weights; a model without any as it is."""
    if not any(isinstance(module, LowRank) for module in model.modules()):
        return model
    merged = copy.deepcopy(model)
    for parent in list(merged.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.Linear) and parametrize.is_parametrized(child, "weight"):
                setattr(parent, name, _plain(child))
    return merged


def _plain(layer: nn.Linear) -> nn.Linear:
    """A linear layer of its own: copies share their class, which torch would change for both."""
    plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    plain.weight = nn.Parameter(layer.weight.detach().clone())
    if layer.bias is not None:
        plain.bias = nn.Parameter(layer.bias.detach().clone())
    return plain
