"""Settings of the process that make training faster on CPU and change no result but rounding.

A training step asks for the same buffers as the step before. By default the C library hands large
ones back to the system, which fills each with zeros, page by page, when it is asked for again: a
fifth of a step of the ViT.
"""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # names in glibc's malloc.h: M_...
_NEVER = 2**31 - 1
_GROW_BYTES = 64 << 20


def ask_for_huge_pages() -> None:
    """Let tensors lie on pages of 2 MiB; only what is called before the first tensor counts.

    The setting is read by torch, and inherited by workers. Who has set it keeps their choice.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def keep_freed_memory() -> bool:
    """Keep freed buffers for the next step instead of handing them back to the system.

    Returns:
        Whether the C library (glibc) took the setting; elsewhere nothing changes.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER), (_TOP_PAD, _GROW_BYTES))
    return all(mallopt(name, value) == 1 for name, value in settings)


@contextmanager
def fast_float32() -> Iterator[None]:
    """Allow float32 products of less than full precision: TensorFloat-32 on GPU, Winograd on CPU.

    Their rounding lies far below that of the bfloat16 in which GPUs train anyway.
    """
    import torch  # here: the command line asks for huge pages before torch is there

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def deterministic_algorithms() -> Iterator[None]:
    """Refuse operations that may give other bits each time they run; some are slower for it."""
    import torch

    before = torch.are_deterministic_algorithms_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
