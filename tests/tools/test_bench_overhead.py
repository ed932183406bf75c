"""The benchmark times every part of a short training, and says when it is too much."""

import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"

QUICK = (
    "data.tokens=[1,2,2]",
    "data.token_budget=8",
    "data.synthetic_share=0",
    "data.degrees=[5]",
    "data.degrees_per_step=1",
    "code_start.share=0",
    "validate.per_degree=1",
    "validate.tokens=[1,2,2]",
    "trainer.precision=32-true",
    "trainer.accelerator=cpu",
)


def test_every_part_is_timed() -> None:
    command = [sys.executable, str(TOOLS / "bench_overhead.py"), "--stage", "tokenizer"]
    # A step of this size is so short that nothing about it is cheap: either answer will do.
    done = subprocess.run(
        [*command, "--steps", "12", "--paired", "1", *QUICK],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode in (0, 1), done.stderr
    assert ("TOO MUCH" in done.stdout) == (done.returncode == 1)
    rows = {line[:20].strip(): line.split() for line in done.stdout.splitlines() if "%" in line}
    for part in ("meters", "once", "losses of samples", "logging", "validation", "pictures"):
        assert float(rows[part][-3]) > 0  # milliseconds
    assert rows["validation"][-2] == "500"
    assert rows["checkpoint"][-2] == "200"
    assert "1 pairs" in done.stdout


def test_parts_within_parts_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(TOOLS))
    import bench_overhead

    now = iter(range(100))
    monkeypatch.setitem(bench_overhead.CLOCKS, "wall", lambda: float(next(now)))
    times = bench_overhead.Times("wall")
    inner = times.timed("inner", lambda: None)
    outer = times.timed("outer", lambda: (inner(), inner()))
    outer()  # begins at 0, inner 1 to 2 and 3 to 4, ends at 5
    assert times.seconds == {"inner": 2.0, "outer": 3.0}
