"""Time spadnet's way from a stored volume to a crop beside the usual ways, on one core.

    python tools/bench_data.py --volume FILE [--only NAME] [--repeats N] [--json FILE]

``crop``: random affine crops of 64 x 128 x 128 voxels, 3 of 10 rotated and the others scaled as
published, beside MONAI's lazy pipeline (``data_forms.py`` says how it is built); milliseconds per
crop. ``store_read``: a box of that size from the store beside the nii.gz file through SimpleITK.
``store_size``: the store's file beside float16 npy. ``crop_memory``: the most that memory grows
while one of these crops is made, beside the crop's own, also for a volume four times as large.
``synth_torchio`` and ``synth_cornucopia``: see ``bench_data_synthesis.py``.

Both forms take turns in one process with one thread; figures are medians. Outputs are compared in
the same run, the exit code is 1 where they differ by more than float16 and interpolation explain.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import blosc2
import numpy as np
import SimpleITK as sitk  # noqa: N813
import torch
from data_forms import (
    CROP,
    MIX,
    Prepared,
    deepen,
    draw_mix,
    monai_crop,
    peak_of,
    prepare_files,
    random_box,
    simpleitk_crop,
    spadnet_crop,
)

from spadnet.data.io import read_image
from spadnet.data.preprocess import prepare
from spadnet.data.store import open_volume

VOLUME = ("crop", "store_read", "store_size", "crop_memory")
SYNTHESIS = {"synth_torchio": "torchio", "synth_cornucopia": "cornucopia"}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
TOLERANCE = 1e-3  # intensities lie in [0, 1], where float16 is off by up to 2.5e-4
DEEPER = 4


class Figures(NamedTuple):
    """Result of one comparison.

    Attributes:
        ratio: How many times faster spadnet is; its share where sizes are compared.
        baseline: Milliseconds, or megabytes where sizes are compared.
        ours: The same of spadnet.
        unit: ``ms`` or ``mb``.
        error: Largest difference of outputs; None where there is nothing to compare.
    """

    ratio: float
    baseline: float
    ours: float
    unit: str = "ms"
    error: float | None = None


def faster(baseline: Sequence[float], ours: Sequence[float], error: float) -> Figures:
    """Figures of seconds that were measured by turns."""
    slow, fast = 1e3 * statistics.median(baseline), 1e3 * statistics.median(ours)
    return Figures(slow / fast, slow, fast, error=error)


def seconds(clock: Callable[[], float], work: Callable[[], object]) -> float:
    """Time that some work takes."""
    begin = clock()
    work()
    return clock() - begin


def crop(files: Prepared, repeats: int, clock: Callable[[], float]) -> Figures:
    """Random affine crops beside MONAI's."""
    volume = open_volume(files.store)
    shape = (volume.shape[1], volume.shape[2], volume.shape[3])
    baseline, ours, error = [], [], 0.0
    for repeat in range(repeats + 1):
        slow, fast = 0.0, 0.0
        for plan in draw_mix(volume, seed=repeat):
            pipeline = monai_crop(files.npy, shape, plan)
            if repeat == 0:  # both warm up, and are compared
                difference = pipeline() - spadnet_crop(volume, plan)
                error = max(error, difference.abs().max().item())
                continue
            slow += seconds(clock, pipeline)
            fast += seconds(clock, lambda plan=plan: spadnet_crop(volume, plan))
        baseline.append(slow / MIX)
        ours.append(fast / MIX)
    return faster(baseline[1:], ours[1:], error)


def store_read(files: Prepared, repeats: int, clock: Callable[[], float]) -> Figures:
    """Boxes of the store beside those of the nii.gz file."""
    volume = open_volume(files.store)
    whole = prepare(read_image(files.source)).array
    size = sitk.ImageFileReader()
    size.SetFileName(str(files.source))
    size.ReadImageInformation()
    shape = tuple(reversed(size.GetSize()))
    baseline, ours, error = [], [], 0.0
    for repeat in range(repeats + 1):
        box = random_box(volume.shape[1:], seed=repeat)
        there = random_box(shape, seed=repeat)  # the file's axes may be others
        slow = seconds(clock, lambda there=there: simpleitk_crop(files.source, there))
        fast = seconds(clock, lambda box=box: volume.read(box))
        baseline.append(slow)
        ours.append(fast)
        expected = whole[(slice(None), *(slice(low, high) for low, high in box))]
        error = max(error, float(np.abs(volume.read(box).numpy() - expected).max()))
    return faster(baseline[1:], ours[1:], error)


def store_size(files: Prepared, repeats: int, clock: Callable[[], float]) -> Figures:
    """The store's file beside float16 npy."""
    npy, store = (path.stat().st_size / 1e6 for path in (files.npy, files.store))
    return Figures(store / npy, npy, store, unit="mb")


def crop_memory(files: Prepared, repeats: int, clock: Callable[[], float]) -> Figures:
    """The largest growth of memory over all crops of one mix and a plain box."""
    own = 4 * CROP[0] * CROP[1] * CROP[2]
    peaks = []
    for volume in (open_volume(files.store), deepen(files, DEEPER)):
        box = random_box(volume.shape[1:], seed=0)
        peaks.append(peak_of(lambda volume=volume, box=box: volume.read(box)))
        for plan in draw_mix(volume, seed=0):
            work = lambda volume=volume, plan=plan: spadnet_crop(volume, plan)  # noqa: E731
            peaks.append(peak_of(work))
    return Figures(max(peaks) / own, own / 1e6, max(peaks) / 1e6, unit="mb")


def measure(
    names: Sequence[str], volume: Path | None, *, repeats: int, clock: Callable[[], float]
) -> dict[str, Figures | str]:
    """Measure what is asked for; a text says why something was not measured."""
    results: dict[str, Figures | str] = {}
    with tempfile.TemporaryDirectory() as folder:
        files = None if volume is None else prepare_files(volume, Path(folder))
        for name in names:
            if name in SYNTHESIS:
                results[name] = synthesis(name, repeats=repeats)
            else:
                assert files is not None
                results[name] = globals()[name](files, repeats, clock)
    return results


def synthesis(name: str, *, repeats: int) -> Figures | str:
    """Random images beside another package's, where it is installed."""
    try:
        from bench_data_synthesis import measure as measure_synthesis

        baseline, ours = measure_synthesis(name, repeats=repeats)
    except ImportError as error:
        return f"not measured (pip install {SYNTHESIS[name]}): {error}"
    return Figures(baseline / ours, baseline, ours)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    names = [*VOLUME, *SYNTHESIS]
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--volume", type=Path, help="real volume of at least 64 x 128 x 128 voxels")
    parser.add_argument("--only", choices=names, action="append", help="one figure; repeatable")
    parser.add_argument("--repeats", type=int, default=7, help="timed repeats of each form")
    parser.add_argument(
        "--clock",
        default="wall",
        choices=list(CLOCKS),
        help="cpu: time of the process on its core, for a machine that others use",
    )
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args(argv)
    if arguments.volume is None and {*(arguments.only or names)} & {*VOLUME}:
        parser.error("--volume FILE is missing")
    if arguments.volume is not None and not arguments.volume.exists():
        parser.error(f"--volume {arguments.volume}: no such file")
    if arguments.repeats < 1:
        parser.error("--repeats must be positive")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit code is 1 where outputs differ or a wanted rival is missing."""
    arguments = parse(argv)
    torch.set_num_threads(1)
    blosc2.set_nthreads(1)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    names = arguments.only or [*VOLUME, *SYNTHESIS]
    results = measure(
        names, arguments.volume, repeats=arguments.repeats, clock=CLOCKS[arguments.clock]
    )
    print(f"torch {torch.__version__}, one thread, {arguments.clock} clock")
    print(f"{'figure':<18}{'baseline':>12}{'spadnet':>12}{'ratio':>8}  largest difference")
    figures, code = {}, 0
    for name, result in results.items():
        if isinstance(result, str):
            print(f"{name:<18}{result}")
            code = 1 if arguments.only else code
            continue
        sides = [f"{value:.1f} {result.unit}" for value in (result.baseline, result.ours)]
        error = "" if result.error is None else f"{result.error:.1e}"
        print(f"{name:<18}{sides[0]:>12}{sides[1]:>12}{result.ratio:>8.2f}  {error}")
        if result.error is not None and not result.error <= TOLERANCE:
            print(f"{name}: outputs differ by {result.error:.1e}, more than {TOLERANCE:.0e}")
            code = 1
        figures[name] = {
            "ratio": result.ratio,
            f"baseline_{result.unit}": result.baseline,
            f"ours_{result.unit}": result.ours,
        }
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
