"""Measure how much faster two ranks train than one, each with one CPU thread.

    python tools/bench_ranks.py --stage mim --ranks 2 --repeats 3

The same global batches, once by one process and once by ranks that torchrun starts on this CPU
(gloo), in turns, so that whatever else the machine does meets both. A step's time is the median
over the steps after the first ones, so that the start of processes does not count. The exit code is
1 where the ratio's median over repeats is below ``--least``.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer

from spadnet.cli import pretrain_mim, pretrain_tokenizer
from spadnet.cli.configure import configure
from spadnet.cli.training import plain
from spadnet.models.tokenizer import spad_vt_tiny
from spadnet.train.run import fit
from spadnet.weights.hub import save_pretrained

SETTINGS = [
    "data.tokens=[4,4,4]",
    "data.token_budget=512",
    "data.degrees=[0,1,2]",
    "data.synthetic_share=0",
    "trainer.threads=1",
]
STAGES = {
    "tokenizer": ("pretrain_tokenizer", pretrain_tokenizer, ["experiment=tokenizer_tiny"]),
    "mim": ("pretrain_mim", pretrain_mim, ["experiment=mim_tiny"]),
}
WARM_UP = 2


class Clock(Callback):
    """Notes when steps end, on the first rank."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Note the time."""
        self.ends.append(time.perf_counter())


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--stage", choices=list(STAGES), default="mim")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=12, help="that count")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--least", type=float, default=1.5, help="ratio that must be reached")
    parser.add_argument("--settings", nargs="*", default=[], help="KEY=VALUE for all trainings")
    parser.add_argument("--rank-of", type=Path, help=argparse.SUPPRESS)  # a rank writes here
    arguments = parser.parse_args(argv)
    if arguments.rank_of is not None:
        return run_rank(arguments.stage, arguments.settings, arguments.rank_of)
    ratios = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        settings = [f"trainer.max_steps={arguments.steps + WARM_UP}", *arguments.settings]
        if arguments.stage == "mim":
            tokenizer = save_pretrained(spad_vt_tiny(), folder / "tokenizer", name="spad_vt_tiny")
            settings.append(f"tokenizer={tokenizer}")
        for number in range(arguments.repeats):
            one, many = (
                measure(arguments.stage, settings, folder / f"{number}-{ranks}", ranks)
                for ranks in (1, arguments.ranks)
            )
            ratios.append(one / many)
            print(
                f"{arguments.stage}: one rank {one:.3f} s a step, {arguments.ranks} ranks "
                f"{many:.3f} s: {one / many:.2f}x",
                flush=True,
            )
    found = statistics.median(ratios)
    print(f"median {found:.2f}x, at least {arguments.least} wanted")
    return 0 if found >= arguments.least else 1


def measure(stage: str, settings: Sequence[str], run: Path, ranks: int) -> float:
    """Median seconds of a step on a number of ranks.

    Raises:
        SystemExit: If the training fails; its last words are shown.
    """
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    line = [sys.executable, *(launcher if ranks > 1 else []), __file__, "--stage", stage]
    line += ["--rank-of", str(run), "--settings", *settings]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        print(done.stderr[-4000:], file=sys.stderr)
        raise SystemExit(2)
    ends = json.loads((run / "ends.json").read_text())[WARM_UP - 1 :]
    return statistics.median(b - a for a, b in itertools.pairwise(ends))


def run_rank(stage: str, settings: Sequence[str], run: Path) -> int:
    """Train as one of the ranks; the first writes down when its steps ended."""
    name, verb, own = STAGES[stage]
    config = configure(name, [*own, *SETTINGS, *settings])
    assert config is not None
    training = verb.rebuild(plain(config))
    clock = Clock()
    fit(
        training.task,
        training.data,
        run,
        accelerator="cpu",
        precision="32-true",
        threads=1,
        save_every_steps=None,
        tensorboard=False,
        csv_file=False,
        show_progress=False,
        callbacks=[clock],
    )
    if int(os.environ.get("RANK", "0")) == 0:
        (run / "ends.json").write_text(json.dumps(clock.ends))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
