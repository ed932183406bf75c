"""How the ranks of a training hold its model: a whole copy each, or a part each."""

from datetime import timedelta
from typing import Literal, get_args

import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy

from spadnet.near_names import suggest
from spadnet.train.launch import Launch

StrategyName = Literal["auto", "ddp", "fsdp"]


class WholeCopies(DDPStrategy):
    """Lightning's DDP with the task's own averaging of gradients in place of the reducer.

    See :mod:`spadnet.train.gradients` for why.
    """

    def configure_ddp(self) -> None:
        """Leave the model unwrapped; give every rank the first one's weights and buffers."""
        assert self.model is not None
        for tensor in (*self.model.parameters(), *self.model.buffers()):
            whole = tensor.detach().contiguous()  # the wire knows no other layout
            dist.broadcast(whole, 0)
            tensor.detach().copy_(whole)


def check_strategy(name: str) -> None:
    """Raise ValueError if there is no such strategy."""
    known = get_args(StrategyName)
    if name not in known:
        raise ValueError(f"unknown strategy {name!r}{suggest(name, known)}")


def build_strategy(name: str, launch: Launch | None, *, timeout: float) -> Strategy | str:
    """Build the strategy of a training.

    Args:
        name: ``auto`` and ``ddp`` give every rank the whole model; ``fsdp`` splits weights,
            gradients and the optimiser's state (PyTorch's second FSDP, by Lightning).
        launch: How the process was started; None trains alone, and needs no strategy.
        timeout: Seconds after which a rank gives up waiting for the others.
    """
    check_strategy(name)
    if launch is None:
        return "auto"
    patience = timedelta(seconds=timeout)
    if name == "fsdp":
        return ModelParallelStrategy(
            data_parallel_size=launch.world_size,
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,  # one file, which any number of ranks reads
            timeout=patience,
        )
    return WholeCopies(timeout=patience)
