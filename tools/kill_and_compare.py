"""Kill trainings at random moments, go on, and compare with a training that was left alone.

    python tools/kill_and_compare.py --stage tokenizer --kills 20 --seed 0

Two trainings of one configuration run as ``spadnet`` commands: one undisturbed; the other is killed
with SIGKILL at random moments, the import and the writing of checkpoints included, and continued
with ``resume=auto`` and another number of workers. Every checkpoint that both kept, the finished
weights, every row of ``metrics.csv`` and the scores on a test split must agree in each bit. The
exit code is 1 where one does not, 2 where the trainings could not be run.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tiny_labelled import write_pictures, write_volumes

from spadnet.train.metrics_log import MEASURED, read_rows

SAVE_EVERY = 5
SETTINGS = [
    f"callbacks.save_every_steps={SAVE_EVERY}",
    "logger.every_steps=1",
    "logger.tensorboard=false",
    "trainer.threads=1",
    "trainer.precision=32-true",
    "optim.warmup_steps=4",
]
"""Small crops and models: what is compared does not depend on size."""

CROPS = [
    "data.tokens=[1,2,2]",
    "data.token_budget=16",
    "data.degrees_per_step=2",
    "data.synthetic_share=0.3",
    "validate.every_steps=4",
    "validate.panels_every_steps=8",
    "validate.per_degree=1",
    "validate.tokens=[1,2,2]",
]
# What is best on validation, the averaged weights, and scores that come and go.
LABELLED = ["finetune", "data.read_workers=0", "recipe.ema=0.9", "validate.every_steps=3"]
STAGES = {
    # All that has a state: two optimisers, the gate, the averaged codebook and its revival.
    "tokenizer": [
        "pretrain-tokenizer",
        *CROPS,
        "experiment=tokenizer_tiny",
        "discriminator.enabled=true",
        "model.quantizer=nearest",
        "model.codebook_size=16",
        "code_start.share=0.2",
        "code_start.num_steps=4",
    ],
    # The quantizer that draws random numbers, with its temperature's schedule.
    "gumbel": [
        "pretrain-tokenizer",
        *CROPS,
        "experiment=tokenizer_tiny",
        "model.quantizer=gumbel",
        "model.codebook_size=16",
        "code_start.share=0",
    ],
    "mim": [
        "pretrain-mim",
        *CROPS,
        "experiment=mim_tiny",
        "model.depth=2",
        "model.drop_path_rate=0.2",
    ],
    "finetune": [
        *LABELLED,
        "model.depth=2",
        "model.drop_path_rate=0.2",
        "data.size=[1,32,32]",
        "data.batch_size=4",
        "recipe.layer_decay=0.8",
    ],
    "masks": [
        *LABELLED,
        "model=spad_unet_tiny",
        "data.classes=[background,box]",
        "data.crop=[8,16,16]",
        "data.batch_size=2",
        "data.thick_slices=0.3",
    ],
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run both trainings of a stage and compare them; return the exit code."""
    arguments = parse(argv)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) if arguments.out is None else Path(arguments.out)
        folder.mkdir(parents=True, exist_ok=True)
        command = [*STAGES[arguments.stage], *SETTINGS, f"trainer.max_steps={arguments.steps}"]
        command += needs(arguments.stage, folder)
        calm, killed = folder / "undisturbed", folder / "killed"
        for run in (calm, killed):
            shutil.rmtree(run, ignore_errors=True)
        begin = time.monotonic()
        spadnet(command, calm, num_workers=0)
        seconds = time.monotonic() - begin
        kills = kill_at_random(
            command, killed, kills=arguments.kills, seconds=seconds, seed=arguments.seed
        )
        differing = list(compare(calm, killed))
    for line in differing:
        print(f"DIFFERS  {line}")
    steps = f"{arguments.steps} steps"
    verdict = f"{len(differing)} differences" if differing else "no differing bit"
    print(f"{arguments.stage}: {steps}, {kills} kills, {verdict}")
    return 1 if differing else 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--stage", choices=list(STAGES), default="tokenizer")
    parser.add_argument("--kills", type=int, default=20, help="kills that must happen")
    parser.add_argument("--steps", type=int, default=40, help="length of the training")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", help="keep both runs in this folder")
    return parser.parse_args(argv)


def needs(stage: str, folder: Path) -> list[str]:
    """Make what a stage starts from; return the settings that name it."""
    if stage == "mim":
        return [f"tokenizer={train_tokenizer(folder)}"]
    if stage == "finetune":
        return [f"data.path={write_pictures(folder / 'pictures')}"]
    if stage == "masks":
        return [f"data.path={write_volumes(folder / 'volumes')}"]
    return []


def train_tokenizer(folder: Path) -> Path:
    """Train the tokenizer that stage 2 needs, for two steps."""
    run = folder / "tokenizer"
    settings = [*STAGES["gumbel"], *SETTINGS, "trainer.max_steps=2", "optim.warmup_steps=1"]
    spadnet(settings, run, num_workers=0)
    return run / "tokenizer"


# --- runs ---


def start(command: Sequence[str], run: Path, *, num_workers: int) -> subprocess.Popen[str]:
    """Start a training in a process group of its own, so that its workers die with it."""
    line = [
        sys.executable,
        "-m",
        "spadnet",
        *command,
        f"out={run}",
        f"data.num_workers={num_workers}",
    ]
    return subprocess.Popen(
        [*line, "resume=auto"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def spadnet(command: Sequence[str], run: Path, *, num_workers: int) -> None:
    """Train to the end.

    Raises:
        SystemExit: If the training fails; its last words are shown.
    """
    process = start(command, run, num_workers=num_workers)
    _, words = process.communicate()
    if process.returncode != 0:
        print(words[-2000:], file=sys.stderr)
        raise SystemExit(2)


def kill_at_random(
    command: Sequence[str], run: Path, *, kills: int, seconds: float, seed: int
) -> int:
    """Kill a training until it was killed often enough, then let it end.

    Every second moment is drawn over a whole training; the others hit soon after a checkpoint
    appears, where most can go wrong. A training that ended before its moment starts anew.

    Args:
        command: Verb and settings.
        run: Run folder.
        kills: Number of kills.
        seconds: Duration of the undisturbed training.
        seed: Of the moments.

    Returns:
        Number of kills of the training that ended.
    """
    moments = random.Random(seed)
    done = 0
    while done < kills:
        process = start(command, run, num_workers=moments.choice([0, 1, 2]))
        if done % 2:
            has_ended = wait_for_checkpoint(process, run)
            wait = moments.uniform(0, 0.3)
        else:
            has_ended = False
            wait = moments.uniform(0.3, 1.0) * seconds
        try:
            if not has_ended:
                process.wait(timeout=wait)
            print(f"ended with {process.returncode} before kill {done + 1}", flush=True)
            if process.returncode != 0:
                raise SystemExit(2)
            shutil.rmtree(run)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            done += 1
            print(f"kill {done} with checkpoints {checkpoint_names(run)}", flush=True)
        finally:
            assert process.stderr is not None
            process.stderr.close()
    spadnet(command, run, num_workers=1)
    return done


def wait_for_checkpoint(process: subprocess.Popen[str], run: Path) -> bool:
    """Wait until another checkpoint begins to appear; return whether the process ended first."""
    before = checkpoint_names(run)
    while process.poll() is None:
        if checkpoint_names(run) != before:
            return False
        time.sleep(0.005)
    return True


def checkpoint_names(run: Path) -> list[str]:
    """Names of what lies beside the checkpoints, unfinished ones included."""
    folder = run / "checkpoints"
    return sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []


# --- comparison ---


def compare(calm: Path, killed: Path) -> Iterator[str]:
    """Name everything in which two finished runs differ."""
    names = checkpoint_names(calm)
    if names != checkpoint_names(killed):
        yield f"checkpoints: {names} and {checkpoint_names(killed)}"
    for name in sorted({*names} & {*checkpoint_names(killed)}):
        states = [
            torch.load(run / "checkpoints" / name, weights_only=True) for run in (calm, killed)
        ]
        yield from differences(states[0], states[1], where=name)
    for file in sorted(calm.rglob("*.safetensors")):
        name = str(file.relative_to(calm))
        yield from differences(load_file(file), load_file(killed / name), where=name)
    for name in ("results.json", "predictions.csv", "cases.csv"):
        if (calm / name).exists():
            yield from differences(scores(calm / name), scores(killed / name), where=name)
    rows = [logged(run / "metrics.csv") for run in (calm, killed)]
    if len(rows[0]) != len(rows[1]):
        yield f"metrics.csv: {len(rows[0])} rows and {len(rows[1])}"
    for number, (a, b) in enumerate(zip(*rows, strict=False)):
        if a != b:
            yield f"metrics.csv, row {number}: {a} and {b}"


def logged(file: Path) -> list[dict[str, str]]:
    """Rows of a metrics file without what is another each time, such as speed."""
    return [
        {name: value for name, value in row.items() if not name.startswith(MEASURED)}
        for row in read_rows(file)
    ]


def scores(file: Path) -> Any:
    """What a file of scores says, without the duration of the training."""
    if file.suffix == ".csv":
        return file.read_text().splitlines()
    records = json.loads(file.read_text())
    return [{key: value for key, value in r.items() if key != "seconds"} for r in records]


def differences(a: Any, b: Any, *, where: str) -> Iterator[str]:
    """Name the leaves of two nested containers that differ in a bit."""
    if type(a) is not type(b):
        yield f"{where}: {type(a).__name__} and {type(b).__name__}"
    elif isinstance(a, dict):
        if a.keys() != b.keys():
            yield f"{where}: keys {sorted(map(str, a.keys() ^ b.keys()))}"
        for key in a.keys() & b.keys():
            yield from differences(a[key], b[key], where=f"{where}/{key}")
    elif isinstance(a, list | tuple):
        if len(a) != len(b):
            yield f"{where}: {len(a)} and {len(b)} entries"
        for index, (x, y) in enumerate(zip(a, b, strict=False)):
            yield from differences(x, y, where=f"{where}/{index}")
    elif isinstance(a, torch.Tensor):
        if a.dtype != b.dtype or a.shape != b.shape or not same_bits(a, b):
            yield f"{where}: tensors {tuple(a.shape)}"
    elif a != b and not (a != a and b != b):  # nan is nan
        yield f"{where}: {a!r} and {b!r}"


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors of one shape and type are equal bit for bit, NaN included."""
    return a.contiguous().view(-1).numpy().tobytes() == b.contiguous().view(-1).numpy().tobytes()


if __name__ == "__main__":
    raise SystemExit(main())
