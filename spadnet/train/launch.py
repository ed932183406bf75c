"""Which of several processes this is, as torchrun or srun have told it. No Lightning here.

One process per device, started from outside: a process that starts its own copies gets in the way
of schedulers, sweeps and whatever else wants to know which processes there are.
"""

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

_SRUN_PORTS = 15000  # first of ten thousand, one per job number
_PR_SET_PDEATHSIG = 1  # in Linux' prctl.h
_LAST_SECONDS = 20.0  # for a failed rank's farewell; launchers give the others 30
_LOST_PEER = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL")


class Launch(NamedTuple):
    """Place of this process among those of a training.

    Attributes:
        rank: Its number, from 0.
        world_size: Number of processes.
        local_world_size: Number of them on this machine.
    """

    rank: int
    world_size: int
    local_world_size: int

    @property
    def num_nodes(self) -> int:
        """Number of machines, with as many processes each."""
        return self.world_size // self.local_world_size


def find_launch() -> Launch | None:
    """How this process was started; None if it trains alone.

    What srun says is written to the environment in torchrun's words, which torch understands.

    Raises:
        ValueError: If machines hold different numbers of processes.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        _translate_srun()
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return None
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    local = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))
    if world_size % local:
        raise ValueError(f"{world_size} processes with {local} on this machine: start as many each")
    return Launch(rank, world_size, local)


def is_first_rank() -> bool:
    """Whether this process is the one that writes files and shows progress."""
    launch = find_launch()
    return launch is None or launch.rank == 0


def rank_label() -> str:
    """What a rank's words begin with: its number, nothing where a process trains alone.

    >>> rank_label()
    ''
    """
    told = os.environ
    number = told.get("RANK", told.get("SLURM_PROCID", "0"))
    count = told.get("WORLD_SIZE", told.get("SLURM_STEP_NUM_TASKS", "1"))
    return "" if count == "1" else f"rank {number}: "


@contextmanager
def end_with_others(launch: Launch | None) -> Iterator[None]:
    """See that a rank that failed ends, and say in one line where it failed for another's sake.

    A process group may wait at a process's end for ranks that are gone; nothing is left to lose
    then, so the process ends after a while whatever it waits for. A rank whose torchrun is killed
    dies with it (on Linux): it would go on alone, in a run folder that others may continue.

    Raises:
        ConnectionError: If another rank ended.
    """
    if launch is not None and "TORCHELASTIC_RUN_ID" in os.environ:
        _die_with_parent()
    try:
        yield
    except BaseException as error:
        if launch is None:
            raise
        last = threading.Timer(_LAST_SECONDS, os._exit, [1])
        last.daemon = True
        last.start()
        if isinstance(error, RuntimeError) and any(text in str(error) for text in _LOST_PEER):
            raise ConnectionError("another rank has ended; its own error tells why") from error
        raise


def _die_with_parent() -> None:
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _translate_srun() -> None:
    """Say in torchrun's words what srun told a task of a step of several tasks.

    A batch script's own process sees the numbers of its allocation too, but not those of a step
    with several tasks: it trains alone.
    """
    told = os.environ
    if "RANK" in told or int(told.get("SLURM_STEP_NUM_TASKS", "1")) < 2:
        return
    per_node = told["SLURM_STEP_TASKS_PER_NODE"]  # as in 4 or 4(x2)
    if "," in per_node:
        raise ValueError(f"SLURM_STEP_TASKS_PER_NODE={per_node}: use --ntasks-per-node")
    told["RANK"] = told["SLURM_PROCID"]
    told["WORLD_SIZE"] = told["SLURM_STEP_NUM_TASKS"]
    told["LOCAL_RANK"] = told["SLURM_LOCALID"]
    told["LOCAL_WORLD_SIZE"] = per_node.partition("(")[0]
    told["GROUP_RANK"] = told["SLURM_NODEID"]
    told.setdefault("MASTER_ADDR", _first_host(told["SLURM_STEP_NODELIST"]))
    job = int(told.get("SLURM_JOB_ID", "0"))
    told.setdefault("MASTER_PORT", str(_SRUN_PORTS + job % 10_000))


def _first_host(nodes: str) -> str:
    """First of a list such as ``gpu[03-05,9],cpu1``.

    >>> _first_host("gpu[03-05,9],cpu1"), _first_host("a1,a2")
    ('gpu03', 'a1')
    """
    prefix, bracket, rest = nodes.split(",")[0].partition("[")
    return prefix + rest.rstrip("]").partition("-")[0] if bracket else prefix
