"""``spadnet doctor``: what this installation has, what is missing, and whether a model is whole."""

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
from spadnet.weights.checkpoint import GOLDEN_FILE, WEIGHTS_FILE, verify_files
from spadnet.weights.golden import TOLERANCE, check_golden
from spadnet.weights.hub import Loaded, load_checkpoint


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
    folder, sources = Path("runs"), []
    for text in argv:
        key, equals, value = text.partition("=")
        if not equals:
            sources.append(text)
        elif key == "out":
            folder = Path(value).expanduser()
        else:
            raise UsageError(
                f"doctor takes out=FOLDER or models, got {text!r}{suggest(key, ['out'])}"
            )
    findings = [finding for source in sources for finding in examine_model(source)]
    findings = findings if sources else examine(folder)
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
    return found + [_try(name, check) for name, check in checks.items()]


def examine_model(source: str) -> list[Finding]:
    """Check that a model is whole and computes what it computed where it was saved.

    Args:
        source: Checkpoint folder or hub id.
    """
    try:
        loaded = load_checkpoint(source)
    except (OSError, ValueError) as error:
        return [Finding("model", False, str(error))]
    kind, name = loaded.config["model"]["class"], loaded.config["model"]["name"]
    found = [
        Finding("model", True, f"{loaded.folder}: {kind} {name or ''}".rstrip()),
        Finding("keys", True, str(loaded.report)),
    ]
    checks: dict[str, Callable[[], str]] = {
        "SHA-256": lambda: _sha256(loaded),
        "golden outputs": lambda: _golden(loaded),
    }
    return found + [_try(name, check) for name, check in checks.items()]


def _sha256(loaded: Loaded) -> str:
    value = verify_files(loaded.folder, loaded.config)
    if value is None:
        return f"{WEIGHTS_FILE}: not recorded by the version that saved it"
    return f"{WEIGHTS_FILE}: {value[:12]}... as recorded"


def _golden(loaded: Loaded) -> str:
    file = loaded.folder / GOLDEN_FILE
    if not file.is_file():
        return "none are stored; saving the model with this version adds them"
    checks = check_golden(loaded.model, file)
    worst = max(check.error for check in checks)
    return f"{len(checks)} agree, worst difference {worst:.1e} of {TOLERANCE:.0e} allowed"


def _try(name: str, check: Callable[[], str]) -> Finding:
    try:
        return Finding(name, True, check())
    except (OSError, ValueError) as error:
        return Finding(name, False, str(error))


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
