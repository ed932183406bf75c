"""Time synthesis of a 128^3 volume beside TorchIO and cornucopia, on one thread.

    python tools/bench_data_synthesis.py [--only NAME] [--repeats N] [--clock cpu] [--json FILE]

Every form is given the same label map of 33 labels and makes an image and its deformed labels:

- ``synth_torchio``: RandomElasticDeformation of the labels, then RandomLabelsToImage, RandomBlur,
  RandomBiasField and RandomGamma, with TorchIO's defaults. The order is the cheapest one: the
  other way round image and labels both would have to be deformed.
- ``synth_cornucopia``: SynthFromLabelTransform with its defaults.
- spadnet: ``synthesize`` with the label map as source and its defaults: displacement, Gaussian
  mixture with texture, bias field, noise, blur and gamma; bias field and clean image come too.
- ``anatomy_torchio``, ``anatomy_cornucopia``: the same, but spadnet draws the 33 labels as well,
  from Gaussian random fields, while the others are still given theirs.

The forms take turns, after one run of each that does not count. TorchIO and cornucopia are needed
for this benchmark only: ``pip install --target FOLDER torchio cornucopia`` and PYTHONPATH=FOLDER.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from itertools import count
from pathlib import Path

import torch
from torch import Tensor

from spadnet.synthesis import synthesize

SIZE, NUM_LABELS = 128, 33
NAMES = ("synth_torchio", "synth_cornucopia", "anatomy_torchio", "anatomy_cornucopia")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}

Form = Callable[[], tuple[Tensor, Tensor]]
"""Makes an image and its labels, each of ``size`` voxels along three axes."""


def measure(
    name: str, *, repeats: int, size: int = SIZE, clock: Callable[[], float] = time.perf_counter
) -> tuple[float, float]:
    """Time spadnet beside another package on one thread.

    Args:
        name: One of ``NAMES``.
        repeats: Timed runs of each.
        size: Voxels along each axis.
        clock: Seconds that went by.

    Returns:
        Medians in milliseconds: of the other package and of spadnet.

    Raises:
        ImportError: If the other package is not installed.
    """
    if name not in NAMES:
        raise ValueError(f"name must be one of {', '.join(NAMES)}, got {name!r}")
    with _one_thread():
        labels = synthesize([0], (size, size, size), num_labels=NUM_LABELS, source="mixed").labels
        theirs = (torchio_form if name.endswith("torchio") else cornucopia_form)(labels)
        ours = spadnet_form(labels if name.startswith("synth") else None, size=size)
        for form in (theirs, ours):
            _check(*form(), size=size)
        times = [[_time(form, clock) for form in (theirs, ours)] for _ in range(repeats)]
    baseline_ms, ours_ms = (1e3 * statistics.median(column) for column in zip(*times, strict=True))
    return baseline_ms, ours_ms


def spadnet_form(labels: Tensor | None, *, size: int) -> Form:
    """Synthesis by spadnet from given labels [1, d, h, w], or from random fields."""
    seeds = count()

    def run() -> tuple[Tensor, Tensor]:
        sample = synthesize(
            [next(seeds)],
            (size, size, size),
            num_labels=NUM_LABELS,
            source="fields" if labels is None else labels,
        )
        return sample.image[0, 0], sample.labels[0]

    return run


def torchio_form(labels: Tensor) -> Form:
    """TorchIO's random pipeline on a label map [1, d, h, w]."""
    try:
        import SimpleITK as sitk  # noqa: N813, the name that its documentation uses

        tio = import_module("torchio")
    except ImportError as error:
        raise ImportError(f"TorchIO is not installed ({error}); pip install torchio") from error
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    subject = tio.Subject(label=tio.LabelMap(tensor=labels))
    transform = tio.Compose(
        [
            tio.RandomElasticDeformation(),
            tio.RandomLabelsToImage(label_key="label", image_key="image"),
            tio.RandomBlur(),
            tio.RandomBiasField(),
            tio.RandomGamma(),
        ]
    )

    def run() -> tuple[Tensor, Tensor]:
        made = transform(subject)
        return made["image"].data[0], made["label"].data[0]

    return run


def cornucopia_form(labels: Tensor) -> Form:
    """Cornucopia's synthesis with its defaults on a label map [1, d, h, w]."""
    try:
        cornucopia = import_module("cornucopia")
    except ImportError as error:
        raise ImportError(
            f"cornucopia is not installed ({error}); pip install cornucopia"
        ) from error
    transform = cornucopia.SynthFromLabelTransform()

    def run() -> tuple[Tensor, Tensor]:
        made = transform(labels)
        return made["image"][0], made["label"][0]

    return run


def _check(image: Tensor, labels: Tensor, *, size: int) -> None:
    """Refuse to time what has made no image of the anatomy."""
    shape = (size, size, size)
    if image.shape != shape or labels.shape != shape:
        raise RuntimeError(f"expected {shape}, got {tuple(image.shape)} and {tuple(labels.shape)}")
    if not image.isfinite().all() or image.float().std() == 0:
        raise RuntimeError("the image is constant or not finite")
    if labels.unique().numel() < NUM_LABELS // 2:
        raise RuntimeError(f"only {labels.unique().numel()} of {NUM_LABELS} labels are left")


def _time(form: Form, clock: Callable[[], float]) -> float:
    start = clock()
    form()
    return clock() - start


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit code is 1 where another package is missing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", choices=NAMES, action="append", help="one figure; repeatable")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each form")
    parser.add_argument("--size", type=int, default=SIZE, help="voxels along each axis")
    parser.add_argument("--clock", default="wall", choices=list(CLOCKS), help="cpu: process time")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args(argv)
    clock = CLOCKS[arguments.clock]
    figures = {}
    for name in arguments.only or NAMES:
        try:
            baseline, ours = measure(
                name, repeats=arguments.repeats, size=arguments.size, clock=clock
            )
        except ImportError as error:
            sys.stderr.write(f"error: {error}\n")
            return 1
        figures[name] = {"baseline_ms": baseline, "ours_ms": ours, "ratio": baseline / ours}
        print(f"{name:<20}{baseline:>10.1f} ms{ours:>10.1f} ms  ratio {baseline / ours:.1f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
