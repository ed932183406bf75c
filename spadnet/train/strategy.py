"""How the ranks of a training hold its model: a whole copy each, or a part each."""

from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, get_args

import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FSDPModule, fully_shard

from spadnet.near_names import suggest
from spadnet.train.checkpoint import read_checkpoint
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


class Parts(ModelParallelStrategy):
    """Lightning's strategy for PyTorch's second FSDP, with checkpoints that any strategy reads."""

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> Any:
        """Give each rank its part of a whole checkpoint, whoever wrote it.

        Lightning would take the numbers of an optimiser's states for those of the model's
        parameters, which hold only where there is one group.
        """
        state = read_checkpoint(Path(self.broadcast(checkpoint_path)))
        model = self.model
        assert model is not None
        whole = StateDictOptions(full_state_dict=True)
        set_model_state_dict(model, state["state_dict"], options=whole)
        names = {parameter: name for name, parameter in model.named_parameters()}
        for optimizer, saved in zip(self.optimizers, state["optimizer_states"], strict=True):
            moments, groups = {}, []
            pairs = zip(optimizer.param_groups, saved["param_groups"], strict=True)
            for group, saved_group in pairs:
                own = [names[parameter] for parameter in group["params"]]
                groups.append({**saved_group, "params": own})
                for name, number in zip(own, saved_group["params"], strict=True):
                    moments[name] = saved["state"][number]
            by_name: Any = {"state": moments, "param_groups": groups}
            set_optimizer_state_dict(model, optimizer, by_name, options=whole)
        return state


def split_among_ranks(model: nn.Module, parts: Iterable[nn.Module], *, mesh: Any) -> None:
    """Let each rank hold a part of every weight, gathered when its module runs.

    Args:
        model: Changed in place; nothing happens if it is split already.
        parts: Modules that are gathered one after another; the rest of the model is one more.
        mesh: Lightning's mesh of ranks; None leaves the model whole.
    """
    if mesh is None or isinstance(model, FSDPModule):
        return
    for part in parts:
        fully_shard(part, mesh=mesh["data_parallel"])
    fully_shard(model, mesh=mesh["data_parallel"])


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
        return Parts(
            data_parallel_size=launch.world_size,
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,  # one file, which any number of ranks reads
            timeout=patience,
        )
    return WholeCopies(timeout=patience)
