"""Train the tokenizer with and without its discriminator, and compare what comes out.

    python tools/compare_adversarial.py --steps 400

One configuration and one seed (``tokenizer_tiny`` on the images that come with the package), first
without a discriminator, then with it at each of ``--gates``: 0.025 is the published gate, which
opens once the discriminator is nearly always right; a large one is open from the first step. Shown
are reconstruction and codes on held-out images, how long the gate was open, the discriminator's
loss over the last quarter, and the largest norm of the tokenizer's gradient over its median. The
exit code is 1 where a training was not stable: a loss that is no number, or held-out images
rebuilt by more than 1 dB worse than without the discriminator.
"""

import argparse
import csv
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from spadnet.cli.demo import held_out_images
from spadnet.evaluate.tokenizer_figures import tokenizer_figures
from spadnet.weights.hub import load_tokenizer

ALLOWED_LOSS = 1.0  # dB
SETTINGS = [
    "pretrain-tokenizer",
    "experiment=tokenizer_tiny",
    "model.codebook_size=128",
    "trainer.threads=1",
    "logger.every_steps=1",
    "logger.tensorboard=false",
    "callbacks.show_progress=false",
]


class Outcome(NamedTuple):
    """What a training came to.

    Attributes:
        psnr: Mean over held-out images, dB.
        ssim: Mean over held-out images.
        codes: Share of the codes that are used.
        open_share: Share of steps with the gate open.
        judge: Mean loss of the discriminator over the last quarter; NaN without one.
        spike: Largest gradient norm over the median one.
        is_finite: Whether every loss was a number.
    """

    psnr: float
    ssim: float
    codes: float
    open_share: float
    judge: float
    spike: float
    is_finite: bool


def main(argv: Sequence[str] | None = None) -> int:
    """Train and compare; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--gates", type=float, nargs="+", default=[0.025, 100.0])
    parser.add_argument("--settings", nargs="*", default=[], help="KEY=VALUE for all trainings")
    arguments = parser.parse_args(argv)
    steps = [f"trainer.max_steps={arguments.steps}", f"seed={arguments.seed}"]
    shared = [*SETTINGS, *steps, *arguments.settings]
    with tempfile.TemporaryDirectory() as scratch:
        without = train([*shared, "discriminator.enabled=false"], Path(scratch) / "without")
        print(line("without", without), flush=True)
        is_stable = without.is_finite
        for gate in arguments.gates:
            own = ["discriminator.enabled=true", f"discriminator.gate_threshold={gate}"]
            found = train([*shared, *own], Path(scratch) / f"gate-{gate}")
            print(line(f"gate {gate:g}", found), flush=True)
            is_stable &= found.is_finite and found.psnr > without.psnr - ALLOWED_LOSS
    print("stable" if is_stable else "NOT STABLE")
    return 0 if is_stable else 1


def train(command: Sequence[str], run: Path) -> Outcome:
    """Train and look at what came out.

    Raises:
        SystemExit: If the training fails; its last words are shown.
    """
    whole = [sys.executable, "-m", "spadnet", *command, f"out={run}"]
    done = subprocess.run(whole, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        print(done.stderr[-2000:], file=sys.stderr)
        raise SystemExit(2)
    with open(run / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    columns = {name: [float(row[name]) for row in rows if row[name]] for name in rows[0]}
    norms = columns["train/gradient_norm"]
    judge = columns.get("train/discriminator", [])[-len(rows) // 4 :]
    gate = columns.get("train/gate_open", [0.0])
    tokenizer = load_tokenizer(run / "tokenizer")
    figures = tokenizer_figures(tokenizer, held_out_images(tokenizer))
    return Outcome(
        psnr=statistics.mean(image.psnr for image in figures.images),
        ssim=statistics.mean(image.ssim for image in figures.images),
        codes=figures.codes.codes_used / figures.codes.codebook_size,
        open_share=statistics.mean(gate),
        judge=statistics.mean(judge) if judge else math.nan,
        spike=max(norms) / statistics.median(norms),
        is_finite=all(map(math.isfinite, columns["train/loss"])),
    )


def line(name: str, found: Outcome) -> str:
    """One row of figures."""
    return (
        f"{name:>12}: PSNR {found.psnr:.2f} dB, SSIM {found.ssim:.3f}, codes {found.codes:.0%}, "
        f"gate open {found.open_share:.0%}, discriminator {found.judge:.3f}, "
        f"gradient peak {found.spike:.1f} x median"
    )


if __name__ == "__main__":
    raise SystemExit(main())
