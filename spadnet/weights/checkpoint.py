"""The checkpoint folder on disk: config.json, model.safetensors, golden outputs, the model card.

``config.json`` holds plain types only: the constructor arguments, the whole input contract, what
the model was trained on, licence, versions, and the SHA-256 of the weights.
"""

import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from spadnet.near_names import suggest
from spadnet.weights.convert.rename import StateDict

FORMAT_VERSION = 1
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
GOLDEN_FILE = "golden.safetensors"
CARD_FILE = "README.md"
FILES = (WEIGHTS_FILE, GOLDEN_FILE, CONFIG_FILE, CARD_FILE)
ENTRIES = ("format_version", "model", "contract", "training", "licence", "versions")


def write_folder(
    folder: Path,
    *,
    config: Mapping[str, Any],
    state: Mapping[str, Tensor],
    card: str,
    golden: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a checkpoint folder; nothing is left half-written.

    The files are written beside the folder and moved there when all of them are complete; files of
    an earlier save are replaced, others left alone.

    Args:
        folder: Where to.
        config: Contents of ``config.json``; the SHA-256 of the weights is added.
        state: The weights.
        card: The model card.
        golden: Golden inputs and outputs, None for none.

    Raises:
        ValueError: If ``config`` holds more than plain types.
        OSError: If the disk is full or the folder cannot be written.
    """
    _as_json(config)  # refuse it before anything is written
    staging = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    try:
        staging.mkdir(parents=True)
        own = {key: value.detach().cpu().contiguous() for key, value in state.items()}
        save_file(own, staging / WEIGHTS_FILE, metadata={"format": "pt"})
        files = {WEIGHTS_FILE: sha256_of(staging / WEIGHTS_FILE)}
        (staging / CONFIG_FILE).write_text(_as_json({**config, "files": files}), encoding="utf-8")
        (staging / CARD_FILE).write_text(card, encoding="utf-8")
        if golden is not None:
            save_file(dict(golden), staging / GOLDEN_FILE)
            (staging / GOLDEN_FILE).chmod((staging / CONFIG_FILE).stat().st_mode)
        # safetensors makes its files private; take the access that the user's files have.
        (staging / WEIGHTS_FILE).chmod((staging / CONFIG_FILE).stat().st_mode)
        for file in staging.iterdir():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
        if folder.is_dir():
            (folder / GOLDEN_FILE).unlink(missing_ok=True)  # it belongs to the weights that go
            for name in FILES:
                if (staging / name).exists():
                    (staging / name).replace(folder / name)
        else:
            staging.replace(folder)
    except (OSError, SafetensorError) as error:
        raise _save_error(error, folder) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _as_json(config: Mapping[str, Any]) -> str:
    try:
        return json.dumps(config, indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ValueError(f"{CONFIG_FILE} takes plain types only: {error}") from error


def sha256_of(file: Path) -> str:
    """SHA-256 of a file's bytes."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _save_error(error: Exception, folder: Path) -> OSError:
    """One line with reason and folder, whichever library met the fault."""
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (match := re.search(r"os error (\d+)", str(error))):
        number = int(match[1])
    reason = os.strerror(number) if number else str(error)
    return OSError(number or 0, f"{reason}; the model was not saved", str(folder))


def read_config(folder: Path) -> dict[str, Any]:
    """Read and check the ``config.json`` of a checkpoint folder.

    Raises:
        ValueError: If there is none, it is damaged or of a newer format, or has unknown entries.
    """
    file = folder / CONFIG_FILE
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{folder}: not a checkpoint folder, it has no {CONFIG_FILE}") from error
    except ValueError as error:  # neither UTF-8 nor JSON
        raise ValueError(f"{file}: not JSON: {error}") from error
    version = config.get("format_version") if isinstance(config, dict) else None
    if not isinstance(version, int):
        raise ValueError(f"{file}: not the config of a spadnet checkpoint")
    if version > FORMAT_VERSION:
        raise ValueError(
            f"{file}: format version {version} is newer than this spadnet, which reads up to "
            f"{FORMAT_VERSION}; update spadnet"
        )
    check_entries(config, (*ENTRIES, "files"), required=ENTRIES, where=str(file))
    check_entries(config["model"], ("class", "name", "arguments"), where=f"{file}: model")
    check_entries(config.get("files", {}), (WEIGHTS_FILE,), where=f"{file}: files", required=())
    if not isinstance(config["training"], dict):
        raise ValueError(
            f"{file}: training: expected facts by name, got {config['training']!r:.60}"
        )
    return config


def check_entries(
    given: Any, known: Sequence[str], *, where: str, required: Sequence[str] | None = None
) -> None:
    """Refuse unknown and missing entries of a config; all known ones are required by default.

    Raises:
        ValueError: If there are any; the message names ``where`` and the entry.
    """
    if not isinstance(given, dict):
        raise ValueError(f"{where}: expected entries {', '.join(known)}, got {given!r:.60}")
    for key in given:
        if key not in known:
            raise ValueError(f"{where}: unknown entry {key!r}{suggest(key, known)}")
    if missing := [key for key in (known if required is None else required) if key not in given]:
        raise ValueError(f"{where}: lacks {', '.join(missing)}")


def verify_files(folder: Path, config: Mapping[str, Any]) -> str | None:
    """Compare the weights with the SHA-256 that the config tells.

    Returns:
        The SHA-256, None where the config tells none.

    Raises:
        ValueError: If they differ.
    """
    expected = config.get("files", {}).get(WEIGHTS_FILE)
    if expected is None:
        return None
    file = folder / WEIGHTS_FILE
    if not file.is_file():
        raise ValueError(f"{folder}: has no {WEIGHTS_FILE}")
    actual = sha256_of(file)
    if actual != expected:
        raise ValueError(
            f"{file}: damaged or of another model: its SHA-256 is {actual[:12]}..., "
            f"{CONFIG_FILE} says {str(expected)[:12]}..."
        )
    return actual


def read_weights(file: Path, *, prefix: str = "") -> tuple[StateDict, list[str]]:
    """Read the tensors below ``prefix``; return them without it, and the keys left out.

    Raises:
        ValueError: If there is no such file, or it is damaged.
    """
    if not file.is_file():
        raise ValueError(f"{file.parent}: has no {file.name}")
    try:
        with safe_open(file, framework="pt") as weights:
            keys = list(weights.keys())
            # Cloned, for memory of their own that outlives the file.
            state = {
                key.removeprefix(prefix): weights.get_tensor(key).clone()
                for key in keys
                if key.startswith(prefix)
            }
    except SafetensorError as error:
        raise ValueError(f"{file}: damaged or truncated: {error}") from error
    return state, [key for key in keys if not key.startswith(prefix)]
