"""Settings of the process: memory is kept, the user's own choice too."""

import os
import subprocess
import sys

import pytest
import torch

from spadnet.train.host import ask_for_huge_pages, fast_float32

PROGRAM = """
import resource, sys
import torch
from spadnet.train.host import keep_freed_memory
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
kept = keep_freed_memory() if sys.argv[1] == "keep" else True
for _ in range(12):  # the heap settles first
    torch.empty(64 << 18).fill_(1.0)
before = faults()
for _ in range(5):
    torch.empty(64 << 18).fill_(1.0)
print(int(kept), faults() - before)
"""


def page_faults(mode: str) -> int:
    environment = {k: v for k, v in os.environ.items() if k != "THP_MEM_ALLOC_ENABLE"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, mode],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
        env=environment,
    )
    kept, faults = done.stdout.split()
    if kept != "1":
        pytest.skip("the C library does not take the setting")
    return int(faults)


def test_freed_memory_is_used_again() -> None:
    assert page_faults("keep") < page_faults("plain") / 2


def test_a_choice_of_pages_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    ask_for_huge_pages()
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "0"


def test_fast_float32_ends() -> None:
    before = torch.get_float32_matmul_precision()
    with fast_float32():
        assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == before
