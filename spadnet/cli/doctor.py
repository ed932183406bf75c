"""``spadnet doctor``: what this installation has, and what is missing."""

import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

import spadnet
from spadnet.cli.usage import UsageError, config_groups, config_root
from spadnet.data.samples import list_samples
from spadnet.near_names import suggest
from spadnet.train.precision import choose_precision, has_fast_bfloat16
from spadnet.train.run_folder import versions


class Finding(NamedTuple):
    """Result of one check.

    Attributes:
        name: What was looked at.
        is_well: False where something must be done.
        words: What was found, one line.
    """

    name: str
    is_well: bool
    words: str


def run(argv: Sequence[str]) -> int:
    """Print what was found; the exit code is 1 if something must be done."""
    folder = Path("runs")
    for text in argv:
        key, equals, value = text.partition("=")
        if key != "out" or not equals:
            raise UsageError(f"doctor takes out=FOLDER, got {text!r}{suggest(key, ['out'])}")
        folder = Path(value).expanduser()
    findings = examine(folder)
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        mark = "ok  " if finding.is_well else "FAIL"
        sys.stdout.write(f"{mark} {finding.name:<{width}}  {finding.words}\n")
    return 0 if all(finding.is_well for finding in findings) else 1


def examine(run_folder: Path) -> list[Finding]:
    """Check everything.

    Args:
        run_folder: Where runs shall be written.
    """
    found = [
        Finding(name, version is not None, version or "not installed; install spadnet again")
        for name, version in versions().items()
        if name != "spadnet"
    ]
    found.insert(0, Finding("spadnet", True, spadnet.__version__))
    checks: dict[str, Callable[[], str]] = {
        "threads": _threads,
        "device": _device,
        "bfloat16": _bfloat16,
        "configuration": _configuration,
        "samples": _samples,
        "run folder": lambda: _run_folder(run_folder),
    }
    for name, check in checks.items():
        try:
            found.append(Finding(name, True, check()))
        except (OSError, ValueError) as error:
            found.append(Finding(name, False, str(error)))
    return found


def _threads() -> str:
    limit = os.environ.get("OMP_NUM_THREADS")
    given = "" if limit is None else f", OMP_NUM_THREADS={limit}"
    return f"{torch.get_num_threads()} of {os.cpu_count()} processors{given}"


def _device() -> str:
    if not torch.cuda.is_available():
        return "cpu"
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return f"cuda: {', '.join(names)}"


def _bfloat16() -> str:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    support = "in hardware" if has_fast_bfloat16(device) else "not in hardware"
    return f"{support}; trainer.precision=auto is {choose_precision(device=device)}"


def _configuration() -> str:
    groups = config_groups([config_root()])
    if "experiment" not in groups:
        raise ValueError(f"{config_root()}: no experiments; install spadnet again")
    return f"{len(groups['experiment'])} experiments in {config_root()}"


def _samples() -> str:
    samples = list_samples()
    missing = [sample.path.name for sample in samples if not sample.path.is_file()]
    if missing:
        raise ValueError(f"missing: {', '.join(missing)}; install spadnet again")
    size = sum(sample.path.stat().st_size for sample in samples) / 1e6
    return f"{len(samples)} images, {size:.1f} MB"


def _run_folder(folder: Path) -> str:
    """Try to write below the nearest folder that exists; nothing is left behind."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    with tempfile.TemporaryFile(dir=place) as file:
        file.write(b"spadnet")
    return f"{folder} can be written"
