"""What logging, meters, validation, pictures and checkpoints add to the steps of a training.

    python tools/bench_overhead.py [--stage tokenizer|mim] [--part meters|checkpoint] [--steps N]
        [--clock cpu|wall] [--paired N] [KEY=VALUE ...]

A training of the stage's tiny experiment (KEY=VALUE changes it, experiment=NAME chooses another)
runs as the command line would run it, with every part that is not the step itself timed. A part's
share is its time, at the interval that the configuration has, over that of a step without all
parts. The exit code is 1 where meters (with logging, validation and pictures) take more than 3 % or
checkpoints more than 2 %.

The clock is by default that of the process on its processor, which other work on the machine does
not disturb; writing a checkpoint waits for the disk, so it is always timed by the wall.

``--paired N`` trains N times with everything and N times with nothing but the progress bar, by
turns, and compares the medians of the time of a step by the wall: the check where work is done
elsewhere, as on a GPU.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from lightning.pytorch import Callback
from lightning.pytorch.loggers import TensorBoardLogger

from spadnet.cli import pretrain_mim, pretrain_tokenizer
from spadnet.cli.configure import configure
from spadnet.cli.training import plain
from spadnet.losses.tokenizer import TokenizerLoss
from spadnet.train import flops, meters, run
from spadnet.train.checkpoint import SaveCheckpoints
from spadnet.train.meters import Meters
from spadnet.train.metrics_log import CsvLog
from spadnet.train.step_task import StepTask
from spadnet.train.validation import Validate

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
LIMITS = {"meters": 0.03, "checkpoint": 0.02}
STAGES = {
    "tokenizer": (pretrain_tokenizer, "pretrain_tokenizer", "tokenizer_tiny"),
    "mim": (pretrain_mim, "pretrain_mim", "mim_tiny"),
}
NOTHING = (
    "validate.every_steps=null",
    "logger.csv=false",
    "logger.tensorboard=false",
    "callbacks.save_every_steps=1000000",
)


class Part(NamedTuple):
    """What adds to a step.

    Attributes:
        group: ``meters`` or ``checkpoint``.
        places: Objects and the names of their functions that do it.
        every: Key of the number of steps between two times; None: every step. What is done once
            counts for the whole training.
    """

    group: str
    places: Sequence[tuple[Any, str]]
    every: str | None = None


PARTS = {
    "meters": Part("meters", [(Meters, "on_train_batch_end")]),
    "once": Part(
        "meters",
        [(meters, "flop_counter"), (flops, "count"), (meters, "find_peak")],
        "trainer.max_steps",
    ),
    "losses of samples": Part("meters", [(TokenizerLoss, "of_samples")]),
    "logging": Part(
        "meters",
        [
            (StepTask, "log_dict"),
            (CsvLog, "log_metrics"),
            (TensorBoardLogger, "log_metrics"),
        ],
    ),
    "validation": Part("meters", [(Validate, "_score")], "validate.every_steps"),
    "pictures": Part("meters", [(Validate, "_draw")], "validate.panels_every_steps"),
    "checkpoint": Part(
        "checkpoint", [(SaveCheckpoints, "on_train_batch_end")], "callbacks.save_every_steps"
    ),
}


class Times:
    """Seconds and number of times of each part, the parts inside it taken off."""

    def __init__(self, clock: str) -> None:
        self.clock = clock
        self.seconds: dict[str, float] = defaultdict(float)
        self.most: dict[str, float] = defaultdict(float)
        self._inside: list[float] = []

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed under a name."""
        clock = CLOCKS["wall" if name == "checkpoint" else self.clock]

        def run(*arguments: Any, **options: Any) -> Any:
            begin = clock()
            self._inside.append(0.0)
            try:
                return function(*arguments, **options)
            finally:
                whole = clock() - begin
                own = whole - self._inside.pop()
                if self._inside:
                    self._inside[-1] += whole
                self.seconds[name] += own
                self.most[name] = max(self.most[name], own)

        return run

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Time every part of every training."""
        patches = [
            mock.patch.object(place, function, self.timed(name, getattr(place, function)))
            for name, part in PARTS.items()
            for place, function in part.places
        ]
        for patch in patches:
            patch.start()
        try:
            yield
        finally:
            for patch in patches:
                patch.stop()


class StepClock(Callback):
    """When each step ended, and what the parts had taken by then."""

    def __init__(self, times: Times) -> None:
        self.times = times
        self.ends: list[tuple[float, float]] = []

    def on_train_batch_end(self, *_: Any) -> None:
        """Note the time."""
        spent = sum(s for name, s in self.times.seconds.items() if name != "checkpoint")
        self.ends.append((CLOCKS[self.times.clock](), spent))


def train(stage: str, arguments: Sequence[str], folder: Path, times: Times) -> list[float]:
    """Train as the command line does; return the seconds of each step but the first, without parts.

    Args:
        stage: Of ``STAGES``.
        arguments: Overrides.
        folder: Run folder.
        times: Gets what the parts take.
    """
    verb, _, experiment = STAGES[stage]
    clock = StepClock(times)
    fit = run.fit

    def fit_with_clock(*positional: Any, callbacks: Sequence[Callback] = (), **options: Any) -> Any:
        return fit(*positional, callbacks=[clock, *callbacks], **options)

    with mock.patch("spadnet.cli.training.fit", fit_with_clock):
        code = verb.run([f"experiment={experiment}", *arguments, f"out={folder}"])
    if code:
        raise SystemExit(code)
    pairs = zip(clock.ends, clock.ends[1:], strict=False)
    return [(b - a) - (later - before) for (a, before), (b, later) in pairs]


def shares(stage: str, arguments: Sequence[str], folder: Path, clock: str) -> dict[str, float]:
    """Share of a step that each part takes, printed as a table.

    Args:
        stage: Of ``STAGES``.
        arguments: Overrides, with the length of the training.
        folder: Scratch folder.
        clock: Of ``CLOCKS``.
    """
    times = Times(clock)
    with times.watching():
        steps = train(stage, arguments, folder / "timed", times)
    step = statistics.median(steps)
    own = [text for text in arguments if not text.startswith("trainer.max_steps=")]
    config = configure(STAGES[stage][1], [f"experiment={STAGES[stage][2]}", *own])
    assert config is not None
    settings = plain(config)
    print(f"{stage}: {1e3 * step:.1f} ms a step ({clock} clock), {len(steps) + 1} steps")
    print(f"{'part':<20}{'ms each':>10}{'every':>8}{'share':>9}")
    found = {}
    for name, part in PARTS.items():
        every: int | None = 1
        each = times.seconds[name] / (len(steps) + 1)
        if part.every is not None:
            group, key = part.every.split(".")
            every = settings[group][key]
            each = times.seconds[name] if name == "once" else times.most[name]
        found[name] = 0.0 if every is None else each / every / step
        print(f"{name:<20}{1e3 * each:>10.2f}{every!s:>8}{100 * found[name]:>8.2f}%")
    return found


def paired(stage: str, arguments: Sequence[str], folder: Path, repeats: int) -> None:
    """Print the medians of a step's time with everything and with nothing, trained by turns."""
    medians: dict[str, list[float]] = {"everything": [], "nothing": []}
    for turn in range(repeats):
        for name, extra in (("everything", ()), ("nothing", NOTHING)):
            clock = Times("wall")
            steps = train(stage, [*arguments, *extra], folder / f"{name}-{turn}", clock)
            medians[name].append(statistics.fmean(steps))
    a, b = (statistics.median(values) for values in medians.values())
    print(f"{stage}, {repeats} pairs: {1e3 * a:.1f} ms with everything, {1e3 * b:.1f} with nothing")
    print(f"difference {100 * (a / b - 1):.1f} % of a step")


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Read the command line; what is KEY=VALUE changes the configuration."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--stage", choices=list(STAGES), action="append", help="repeatable")
    parser.add_argument("--part", choices=list(LIMITS), action="append", help="repeatable")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--clock", choices=list(CLOCKS), default="cpu")
    parser.add_argument("--paired", type=int, default=0, metavar="N")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_known_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit code is 1 where a group takes more than it may."""
    arguments, overrides = parse(argv)
    code = 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        common = [f"trainer.max_steps={arguments.steps}", f"trainer.threads={arguments.threads}"]
        common += ["callbacks.show_progress=false", *overrides]
        for stage in arguments.stage or STAGES:
            own = list(common)
            if stage == "mim" and not any(text.startswith("tokenizer=") for text in overrides):
                two = ["trainer.max_steps=2", "callbacks.show_progress=false", *NOTHING]
                train("tokenizer", [*two, "code_start.share=0"], folder / "first", Times("wall"))
                own.append(f"tokenizer={folder / 'first'}")
            found = shares(stage, own, folder / stage, arguments.clock)
            for group in arguments.part or LIMITS:
                total = sum(share for name, share in found.items() if PARTS[name].group == group)
                is_over = total > LIMITS[group]
                code |= is_over
                words = f"{100 * total:.2f} % of a step, {100 * LIMITS[group]:.0f} % allowed"
                print(f"{stage}, {group} together: {words}{': TOO MUCH' if is_over else ''}")
            if arguments.paired:
                paired(stage, own, folder / f"{stage}-pairs", arguments.paired)
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
