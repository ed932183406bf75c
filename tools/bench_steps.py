"""Time spadnet's steps on CPU beside a straightforward form of the same networks.

    python tools/bench_steps.py [--only NAME] [--repeats N] [--threads N] [--json FILE]

Three steps at base size: ``encode`` (a grey image to logits of 500 tokens), ``tokenizer_step``
(forward, backward and AdamW on a crop of 4 x 8 x 8 tokens; L1, prior and entropy losses) and
``mim_step`` (two grey images of 500 tokens: targets of the frozen tokenizer, forward, backward,
clipping, AdamW).

(a) ``straightforward.py``: float32, default layout, taps summed at every call, explicit attention,
mask tokens in every layer, the whole quantizer for a target, AdamW as torch builds it.
(b) spadnet as its training runs: precision by hardware, folded frozen encoder, one product for
queries, keys and values, mask tokens in the last layer, fused AdamW, memory that is kept.

Each form has a process of its own, with the settings of its own; they take turns, so that a noisy
machine disturbs both alike. Outputs for the same weights are compared in the same run, with mask
tokens in every layer of both; the exit code is 1 where they differ beyond rounding.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import torch
from step_forms import BASE, STEPS, TINY, Setting

from spadnet.spacing import MAX_DEGREE
from spadnet.train.host import fast_float32, keep_freed_memory
from spadnet.train.precision import choose_precision

FORMS = ("straightforward", "spadnet")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
# Root mean square difference over that of the values: of outputs, and of gradients, which pass many
# layers twice.
TOLERANCE = {"32-true": (1e-4, 1e-3), "bf16-mixed": (0.05, 0.3)}


class Result(NamedTuple):
    """Result of one step.

    Attributes:
        baseline_ms: Median time of the straightforward form.
        ours_ms: Median time of spadnet.
        errors: Relative difference of each output.
    """

    baseline_ms: float
    ours_ms: float
    errors: dict[str, float]

    @property
    def ratio(self) -> float:
        """How many times faster spadnet is."""
        return self.baseline_ms / self.ours_ms


def work(name: str, setting: Setting, threads: int, clock: Callable[[], float]) -> None:
    """Serve one form of one step: each line asked for is answered by a line."""
    torch.set_num_threads(threads)
    with ExitStack() as stack:
        if setting.form == "spadnet":  # as a training sets them
            keep_freed_memory()
            stack.enter_context(fast_float32())
        step = STEPS[name](setting)
        for line in sys.stdin:
            order, _, path = line.strip().partition(" ")
            begin = clock()
            if order == "outputs":
                torch.save({k: v.detach().float() for k, v in step.outputs().items()}, path)
            else:
                step.run()
            sys.stdout.write(f"{clock() - begin}\n")
            sys.stdout.flush()


class Worker:
    """Process that holds one form of one step."""

    def __init__(self, name: str, form: str, arguments: argparse.Namespace) -> None:
        environment = {k: v for k, v in os.environ.items() if k != "THP_MEM_ALLOC_ENABLE"}
        if form == "spadnet":
            environment["THP_MEM_ALLOC_ENABLE"] = "1"  # as the command line sets it
        command = [sys.executable, __file__, "--only", name, "--worker", form]
        command += ["--threads", str(arguments.threads), "--clock", arguments.clock]
        command += ["--degree", str(arguments.degree)]
        command += ["--precision", arguments.precision, *(["--tiny"] if arguments.tiny else [])]
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, order: str) -> float:
        """Do one thing and return the seconds it took."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(order + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"a worker ended with code {self.process.wait()}")
        return float(answer)

    def stop(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Root mean square difference over the root mean square of what is expected."""
    return ((actual - expected).square().mean() / expected.square().mean()).sqrt().item()


def measure(name: str, arguments: argparse.Namespace) -> Result:
    """Compare and time the two forms of one step, by turns."""
    workers = [Worker(name, form, arguments) for form in FORMS]
    try:
        with tempfile.TemporaryDirectory() as folder:
            files = [Path(folder, f"{form}.pt") for form in FORMS]
            for worker, file in zip(workers, files, strict=True):
                worker.ask(f"outputs {file}")
            expected, actual = (torch.load(file, weights_only=True) for file in files)
        errors = {key: relative_error(actual[key], expected[key]) for key in expected}
        for worker in workers:
            worker.ask("run")  # buffers, caches and the optimiser's state
        times = [[worker.ask("run") for worker in workers] for _ in range(arguments.repeats)]
    finally:
        for worker in workers:
            worker.stop()
    baseline, ours = (1e3 * statistics.median(column) for column in zip(*times, strict=True))
    return Result(baseline, ours, errors)


def describe_machine(arguments: argparse.Namespace) -> str:
    """Say what the machine has and what was chosen for it."""
    found = {
        "AVX2": torch.cpu._is_avx2_supported(),
        "AVX-512": torch.cpu._is_avx512_supported(),
        "AVX-512 bfloat16": torch.cpu._is_avx512_bf16_supported(),
        "AMX": torch.cpu._is_amx_tile_supported(),
    }
    has = ", ".join(name for name, there in found.items() if there) or "none of the known"
    has_not = ", ".join(name for name, there in found.items() if not there) or "nothing"
    single = arguments.precision == "32-true"
    return (
        f"torch {torch.__version__}, {arguments.threads} threads; has {has}; lacks {has_not}\n"
        f"precision of (b): {arguments.precision}"
        f"{' (no fast bfloat16 here)' if single else ''}; "
        f"Winograd convolution: {'yes' if single else 'no'}"
    )


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", choices=list(STEPS), action="append", help="one step; repeatable")
    parser.add_argument("--repeats", type=int, default=7, help="timed runs of each form")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of each form")
    parser.add_argument(
        "--clock",
        default="wall",
        choices=list(CLOCKS),
        help="cpu: time of the process on its cores; for --threads 1 on a machine that others use",
    )
    parser.add_argument("--degree", type=int, default=0, choices=range(MAX_DEGREE + 1))
    parser.add_argument("--precision", default="auto", choices=["auto", *TOLERANCE])
    parser.add_argument("--tiny", action="store_true", help="tiny sizes: a test, not a measurement")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--worker", choices=FORMS, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    arguments.precision = choose_precision(arguments.precision, device="cpu")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit code is 1 where outputs differ."""
    arguments = parse(argv)
    if arguments.worker:
        size = TINY if arguments.tiny else BASE
        setting = Setting(arguments.worker, size, arguments.degree, arguments.precision)
        work(arguments.only[0], setting, arguments.threads, CLOCKS[arguments.clock])
        return 0
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    print(describe_machine(arguments))
    results, is_equal = {}, True
    print(f"{'step':<16}{'(a) ms':>10}{'(b) ms':>10}{'ratio':>8}  relative difference of outputs")
    for name in arguments.only or STEPS:
        result = results[name] = measure(name, arguments)
        differences = ", ".join(f"{key} {error:.1e}" for key, error in result.errors.items())
        print(
            f"{name:<16}{result.baseline_ms:>10.1f}{result.ours_ms:>10.1f}{result.ratio:>8.2f}"
            f"  {differences}"
        )
        for key, error in result.errors.items():
            tolerance = TOLERANCE[arguments.precision][key.startswith("gradient")]
            if not error <= tolerance:
                is_equal = False
                print(f"{name}: {key} differs by {error:.1e}, more than {tolerance:.0e}")
    if arguments.json:
        figures = {
            name: {"ratio": r.ratio, "baseline_ms": r.baseline_ms, "ours_ms": r.ours_ms}
            for name, r in results.items()
        }
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0 if is_equal else 1


if __name__ == "__main__":
    sys.exit(main())
