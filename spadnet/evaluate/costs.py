"""What a run costs: seconds, and the most memory it held."""

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

_MIB = 1 << 20


@contextmanager
def measured() -> Iterator[dict[str, Any]]:
    """Fill a dictionary with ``seconds`` and ``peak_memory_mib`` of what runs inside.

    Memory is that of the CUDA device where there is one, else the most that the whole process held,
    counted from the start of the block where the system allows.
    """
    cost: dict[str, Any] = {}
    begin = time.monotonic()
    _forget_peak()
    yield cost
    cost["seconds"] = round(time.monotonic() - begin, 3)
    cost["peak_memory_mib"] = round(_peak() / _MIB)


def _forget_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # no Linux, or not allowed: the peak of the whole process stands
        return


def _peak() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10
