"""What a run folder tells: what was run, with which versions, and what came out."""

import importlib.metadata
import json
import logging
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from spadnet.train.checkpoint import find_last, write_atomic

logger = logging.getLogger(__name__)

CONFIG_FILE = "config.yaml"
COMMAND_FILE = "command.txt"
VERSIONS_FILE = "versions.json"
DATA_FILE = "data.json"
SUMMARY_FILE = "summary.json"
RESULTS_FILE = "results.json"

_PACKAGES = (
    "spadnet",
    "torch",
    "lightning",
    "hydra-core",
    "timm",
    "monai",
    "numpy",
    "SimpleITK",
    "safetensors",
)


def versions() -> dict[str, str | None]:
    """Versions of Python, of the machine's system and of the packages that matter."""
    found: dict[str, str | None] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
    }
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    found["torch"] = str(torch.__version__)  # with the build: cpu or a CUDA version
    return found


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit of the sources and whether they were changed since; None outside a repository."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            check=True,
            timeout=20,
        )
        return done.stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write plain types as JSON, atomically."""
    text = json.dumps(content, indent=2) + "\n"
    write_atomic(path, lambda file: file.write(text.encode()))


def record_run(
    run_dir: Path, *, config: str, command: Sequence[str], data: Mapping[str, Any] | None = None
) -> None:
    """Write what is about to run: configuration, command, versions and what is known of the data.

    A command is appended, so that a resumed run shows all of them. That the data of a resumed run
    have changed is warned of.

    Args:
        run_dir: Run folder.
        config: Composed configuration as YAML.
        command: The command line.
        data: What is trained on; its ``sha256`` tells whether it has changed.
    """
    write_atomic(run_dir / CONFIG_FILE, lambda file: file.write(config.encode()))
    log = run_dir / COMMAND_FILE
    before = log.read_text() if log.is_file() else ""
    lines = before + shlex.join(command) + "\n"
    write_atomic(log, lambda file: file.write(lines.encode()))
    found: dict[str, Any] = dict(versions())
    found["executable"] = sys.executable
    found["git"] = git_state(Path(__file__).resolve().parents[2])
    write_json(run_dir / VERSIONS_FILE, found)
    if data is not None:
        before_sum = _checksum(run_dir / DATA_FILE)
        if before_sum not in (None, data.get("sha256")):
            logger.warning("%s: the data have changed since this run began", run_dir)
        write_json(run_dir / DATA_FILE, data)


def _checksum(file: Path) -> str | None:
    try:
        return str(json.loads(file.read_text())["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def checkpoint_to_resume(run_dir: Path, resume: str | None) -> Path | None:
    """Find where to continue, and keep a new run from mixing with one that is there.

    Args:
        run_dir: Run folder.
        resume: ``"auto"`` continues the newest checkpoint of the folder if there is one, None
            starts anew, anything else is a checkpoint's file.

    Raises:
        ValueError: If the folder already holds a run that was not to be continued, or the file is
            missing.
    """
    if resume not in (None, "auto"):
        path = Path(str(resume))
        if not path.is_file():
            raise ValueError(f"resume={resume}: no such checkpoint; resume=auto finds the newest")
        return path
    last = find_last(run_dir)
    if resume is None and last is not None:
        raise ValueError(
            f"{run_dir}: holds a run already; continue it with resume=auto or choose another out="
        )
    return last
