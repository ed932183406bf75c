"""What is left to do of many files: names of outputs, what is done already, what cannot be used."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from spadnet.data.atomic import write_atomic
from spadnet.data.catalogue import to_lines
from spadnet.data.inputs import Item
from spadnet.data.journal import Fault, hash_of

_CHUNK = 1 << 20
_SEVERAL = 2  # any count but one: names do not depend on it


def output_files(items: Sequence[Item], folder: Path, *, ending: str) -> list[Path]:
    """Name one output per item, below a folder and like its key.

    Args:
        items: With keys of their own.
        folder: Where outputs go; a key cannot lead out of it.
        ending: Added to the key.

    Raises:
        ValueError: If two items would be written to one file.
    """
    files: dict[Path, Item] = {}
    for item in items:
        parts = [part for part in PurePosixPath(item.key).parts if part not in ("/", "..")]
        file = folder.joinpath(*parts[:-1], f"{parts[-1] if parts else 'image'}{ending}")
        if file in files:
            raise ValueError(f"{item.key} and {files[file].key} would both be written to {file}")
        files[file] = item
    return list(files)


def state_of(item: Item) -> list[tuple[str, int, int]]:
    """Name, size and time of change of an item's files, or of what is meant of its folder."""
    try:
        if item.files is not None:
            files = [item.path / name for name in item.files]
        else:
            files = [
                file
                for path in item.paths
                for file in (sorted(path.iterdir()) if path.is_dir() else [path])
            ]
        return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    except OSError:
        return []


def signature(item: Item, settings: Any) -> str:
    """Hash of a source's state and of all that decides what becomes of it.

    Args:
        item: The source.
        settings: Plain values: the model's digest and the options.
    """
    return hash_of([state_of(item), item.spacing, settings])


# --- images of one file: frames of a film, volumes of a 4D file ---


def frame_keys(key: str, count: int) -> list[str]:
    """Names of a file's images: its own key if there is one, else with their numbers."""
    return [key] if count == 1 else [f"{key}[{index}]" for index in range(count)]


def frame_file(file: Path, index: int, count: int, *, ending: str) -> Path:
    """Where image number ``index`` of a file goes: the number precedes the ending."""
    if count == 1:
        return file
    stem = file.name.removesuffix(ending)
    return file.with_name(f"{stem}[{index}]{file.name[len(stem) :]}")


def frame_signature(signature: str, count: int) -> str:
    """What one of a file's images was made from, and how many there are."""
    return signature if count == 1 else f"{signature}x{count}"


def num_done(signature: str, found: Callable[[int, int], str | None]) -> int:
    """How many images a file has, if all of them were made from the same; else 0.

    Args:
        signature: Of the file and what is done to it.
        found: The signature that image ``index`` of so many was written with; None if it is not
            there. How many there are is not known of the first.
    """
    if found(0, 1) == signature:
        return 1
    first = found(0, _SEVERAL) or ""
    head, _, count = first.partition("x")
    if head != signature or not count.isdecimal():
        return 0
    is_whole = all(found(index, int(count)) == first for index in range(1, int(count)))
    return int(count) if is_whole else 0


def model_digest(folder: Path) -> str:
    """Hash of a checkpoint folder's configuration and weights."""
    digest = hashlib.sha256()
    for name in ("config.json", "model.safetensors"):
        with open(folder / name, "rb") as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()[:16]


def write_quarantine(file: Path, faults: Iterable[Fault]) -> None:
    """List files that cannot be used and why, as JSON lines; no list where there are none."""
    rows = [fault._asdict() for fault in sorted(faults)]
    if rows:
        write_atomic(file, to_lines(rows))
    else:
        file.unlink(missing_ok=True)
