"""Kill ``spadnet preprocess`` at random moments, continue it, and compare every byte.

python tools/kill_preprocess.py --kills 30 --seed 0    ends with 1 if a single byte differs

Each time a fresh run is killed (-9) while it writes its store, sometimes with its workers and
sometimes without, and the same command is given again. What it leaves must be what a run leaves
that nobody disturbed.
"""

import argparse
import hashlib
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import PIL.Image

from spadnet.cli import main as spadnet
from spadnet.cli import preprocess  # so that its imports are no part of each run
from spadnet.data.prepare_item import IMAGES

_log = logging.getLogger("kill_preprocess")
_POLL = 0.002  # seconds


def make_inputs(folder: Path, *, count: int, seed: int) -> None:
    """Write images of several kinds, and a broken one.

    Args:
        folder: To be made.
        count: Files that can be read.
        seed: Of their voxels.
    """
    rng = np.random.default_rng(seed)
    (folder / "a b").mkdir(parents=True)
    for index in range(count):
        path = folder / ("a b" if index % 3 else ".") / f"{index:03d}"
        if index % 4 == 3:
            pixels = rng.integers(0, 255, (160, 200, 3), dtype=np.uint8)
            PIL.Image.fromarray(pixels).save(path.with_suffix(".png"))
            continue
        size = (48, 40, 12, 3) if index % 4 == 2 else (96, 80, 24)
        voxels = rng.normal(500, 80, size)
        kind = np.float32 if index % 4 == 1 else np.int16
        image = nib.Nifti1Image(voxels.astype(kind), np.diag([0.9, 0.9, 3.0, 1.0]))
        nib.save(image, path.with_suffix(".nii"))
    (folder / "broken.nii").write_bytes(b"not an image")


def start(inputs: Path, out: Path, *, workers: int) -> int:
    """Start the command in a process group of its own and return its process id."""
    sys.stdout.flush()
    sys.stderr.flush()
    if pid := os.fork():
        return pid
    code = 70
    try:
        os.setsid()
        log = os.open(out.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.stdout = sys.stderr = open(os.dup(log), "w", encoding="utf-8")  # noqa: SIM115
        code = spadnet(["preprocess", f"in={inputs}", f"out={out}", f"workers={workers}"])
        sys.stdout.flush()
    finally:
        os._exit(code)


def finish(inputs: Path, out: Path, *, workers: int) -> None:
    """Run the command to its end."""
    _, status = os.waitpid(start(inputs, out, workers=workers), 0)
    if status != 0:
        text = out.with_suffix(".log").read_text(errors="replace")
        raise RuntimeError(f"spadnet preprocess failed ({status}): {text.strip()[-300:]}")


def kill(inputs: Path, out: Path, *, workers: int, delay: float, alone: bool) -> bool:
    """Start the command on a fresh folder and kill it.

    Args:
        inputs: Images.
        out: Store.
        workers: Processes.
        delay: Seconds after the first image is there.
        alone: Whether its workers are left to notice.

    Returns:
        Whether it was still at work.
    """
    shutil.rmtree(out, ignore_errors=True)
    pid = start(inputs, out, workers=workers)
    while not (out / IMAGES).exists() and os.waitpid(pid, os.WNOHANG) == (0, 0):
        time.sleep(_POLL)
    time.sleep(delay)
    try:
        os.kill(pid, signal.SIGKILL)
        if not alone:
            os.killpg(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        return False
    return os.WIFSIGNALED(status)


def digests(out: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder."""
    return {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file()
    }


def seconds_of_work(inputs: Path, out: Path, *, workers: int) -> float:
    """Time of an undisturbed run from its first image to its end."""
    pid, begin = start(inputs, out, workers=workers), None
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        if begin is None and (out / IMAGES).exists():
            begin = time.monotonic()
        time.sleep(_POLL)
    if begin is None:
        raise RuntimeError(out.with_suffix(".log").read_text(errors="replace").strip()[-300:])
    return time.monotonic() - begin


def run(folder: Path, *, kills: int, seed: int, workers: int, images: int) -> int:
    """Make inputs, kill and compare.

    Args:
        folder: For everything that is written.
        kills: How often.
        seed: Of inputs and moments.
        workers: Processes of the command.
        images: Input files.

    Returns:
        Number of kills after which a byte differed.
    """
    rng = np.random.default_rng(seed)
    inputs, whole, out = folder / "in", folder / "whole", folder / "out"
    make_inputs(inputs, count=images, seed=seed)
    seconds = seconds_of_work(inputs, whole, workers=workers)
    expected = digests(whole)
    _log.info("undisturbed: %d files, %.2f s from the first image on", len(expected), seconds)
    done = bad = 0
    while done < kills:
        delay, alone = float(rng.uniform(0, seconds)), bool(rng.integers(2))
        if not kill(inputs, out, workers=workers, delay=delay, alone=alone):
            continue  # it was done already
        done += 1
        left = len(digests(out))
        finish(inputs, out, workers=workers)
        found = digests(out)
        names = sorted(found.items() ^ expected.items())
        wrong = sorted({name for name, _ in names})
        bad += bool(wrong)
        verdict = f"DIFFERENT: {', '.join(wrong)}" if wrong else "same bytes"
        whom = "the run" if alone else "the run and its workers"
        _log.info(
            "kill %d of %d: %s at %.2f s, %d files there; continued: %s",
            *(done, kills, whom, delay, left, verdict),
        )
    _log.info("%d kills, %d with differing bytes", done, bad)
    return bad


def main(argv: Sequence[str] | None = None) -> int:
    """Return 0 if all bytes are the same."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="of spadnet preprocess")
    parser.add_argument("--images", type=int, default=24, help="input files")
    parser.add_argument("--folder", type=Path, help="to keep what is written; must not exist")
    options = parser.parse_args(argv)
    assert preprocess.run
    if options.folder is not None:
        options.folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as scratch:
        bad = run(
            options.folder or Path(scratch),
            kills=options.kills,
            seed=options.seed,
            workers=options.workers,
            images=options.images,
        )
    return 1 if bad else 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.exit(main())
