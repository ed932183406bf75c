"""Compile what is trained: one graph per degree, whatever the sizes of crops."""

from collections.abc import Iterable

import torch
from torch import nn
from torch.fx.experimental import _config as shapes_config

_RECOMPILE_LIMIT = 64  # six degrees, each in training and evaluation, with one crop or several


def compile_modules(modules: Iterable[nn.Module], *, backend: str) -> None:
    """Compile modules in place, for any size at each degree.

    A module that cannot be one graph, or that asks for ever more graphs, is an error: either would
    be slower than no compilation. Names of parameters stay as they are.

    Args:
        modules: Whose ``forward`` takes tensors and a degree.
        backend: Of ``torch.compile``: ``inductor``, or ``aot_eager`` without a compiler.

    Raises:
        ValueError: If there is no such backend.
    """
    known = torch.compiler.list_backends(exclude_tags=())
    if backend not in known:
        raise ValueError(f"trainer.compile_backend={backend}: choose one of {', '.join(known)}")
    torch._dynamo.config.recompile_limit = _RECOMPILE_LIMIT
    # Sizes that are equal by chance must not be taken for equal for ever.
    shapes_config.use_duck_shape = False
    for module in modules:
        module.compile(fullgraph=True, dynamic=True, backend=backend)


def num_graphs() -> int:
    """Graphs that this process has compiled so far."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])
