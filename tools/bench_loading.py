"""Time what a user waits for before the first feature, beside the import of torch alone.

    python tools/bench_loading.py [--repeats N] [--clock wall|cpu] [--size NAME] [--json FILE]

``import``: a process that imports torch and spadnet. ``names``: one that also touches every public
name of spadnet. ``load_encoder``: one that loads an encoder of base size from a folder on disk and
encodes one 2D image of 224 x 224. The baseline of each is a process that imports torch.

Processes take turns, so that a noisy machine disturbs all alike; the first turn only warms the
file cache. ``more`` is what a user waits beyond torch; its limits are 1.5 s for imports and 2 s for
the first feature.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import spadnet

BASELINE = "import torch"
PROGRAMS = {
    "import": "import torch, spadnet",
    "names": "import torch, spadnet; [getattr(spadnet, name) for name in spadnet.__all__]",
    "load_encoder": (
        "import sys, torch, spadnet; encoder = spadnet.load_encoder(sys.argv[1]); "
        "assert encoder(torch.rand(224, 224)).cls.isfinite().all()"
    ),
}
LIMITS_MS = {"import": 1500, "names": 1500, "load_encoder": 2000}


def cpu_seconds() -> float:
    """Time that all processes started so far have computed."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": cpu_seconds}


def run(program: str, folder: Path, clock: Callable[[], float]) -> float:
    """Milliseconds that a new interpreter takes for a program."""
    begin = clock()
    subprocess.run([sys.executable, "-c", program, str(folder)], check=True)
    return 1e3 * (clock() - begin)


def measure(folder: Path, *, repeats: int, clock: Callable[[], float]) -> dict[str, float]:
    """Median milliseconds of each program, the baseline among them."""
    programs = {"baseline": BASELINE, **PROGRAMS}
    turns = [
        {name: run(program, folder, clock) for name, program in programs.items()}
        for _ in range(repeats + 1)
    ]
    return {name: statistics.median(turn[name] for turn in turns[1:]) for name in programs}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each program")
    parser.add_argument(
        "--clock",
        default="wall",
        choices=list(CLOCKS),
        help="cpu: time of the processes on all cores; for a machine that others use",
    )
    parser.add_argument("--size", default="spad_vit_base", help="size of the encoder")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args(argv)
    if arguments.repeats < 1:
        parser.error("--repeats must be positive")
    with tempfile.TemporaryDirectory() as scratch:
        vit = spadnet.create_model(arguments.size)
        folder = spadnet.save_pretrained(vit, Path(scratch) / "model")
        del vit
        times = measure(folder, repeats=arguments.repeats, clock=CLOCKS[arguments.clock])
    baseline = times.pop("baseline")
    print(f"{'program':<16}{'torch ms':>10}{'ours ms':>10}{'more ms':>10}{'limit ms':>10}")
    for name, ours in times.items():
        more = ours - baseline
        print(f"{name:<16}{baseline:>10.0f}{ours:>10.0f}{more:>10.0f}{LIMITS_MS[name]:>10}")
    if arguments.json:
        figures = {
            name: {"ratio": baseline / ours, "baseline_ms": baseline, "ours_ms": ours}
            for name, ours in times.items()
        }
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
