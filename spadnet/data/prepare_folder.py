"""Make a store from image files: in parallel, and again and again with the same result.

A run may be killed at any moment. What is done is noted in a journal, so that the next run goes on
from there and ends with the same bytes as one that nobody disturbed.
"""

import hashlib
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from spadnet.data.atomic import remove_parts, write_atomic
from spadnet.data.catalogue import Record, statistics, to_lines, write_catalogue
from spadnet.data.image import Image, ImageError, file_name, one_line
from spadnet.data.inputs import Item
from spadnet.data.io import read_frames
from spadnet.data.journal import (
    JOURNAL,
    Entry,
    Fault,
    Outcome,
    hash_of,
    is_current,
    journal_line,
    read_journal,
)
from spadnet.data.preprocess import Window, bound_in_plane, cut_to_body, scale
from spadnet.data.store import SUFFIX, StoredImage, storable, write_volume
from spadnet.data.workers import Died, run_tasks

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

IMAGES = "images"
QUARANTINE = "quarantine.jsonl"

_FORMAT = 1  # to be raised by whoever changes what the same settings make of an image
_log = logging.getLogger(__name__)


class Settings(NamedTuple):
    """What is done to every image; see ``prepare``.

    Attributes:
        crop: Whether to cut to the foreground.
        percentiles: Of the foreground; what maps to 0 and 1.
        max_in_plane: Largest size in pixels of the shorter in-plane side; None for no bound.
    """

    crop: bool = True
    percentiles: tuple[float, float] = (0.5, 99.5)
    max_in_plane: int | None = 512

    def digest(self) -> str:
        """Hash that names these settings."""
        return hash_of({"format": _FORMAT, **self._asdict()})


class Prepared(NamedTuple):
    """What became of all items.

    Attributes:
        records: Sorted by key.
        faults: Sorted by file.
        kept: Items that were in the store already.
    """

    records: list[Record]
    faults: list[Fault]
    kept: int


def prepare_store(
    items: Sequence[Item],
    out: Path,
    *,
    settings: Settings,
    workers: int,
    report: Callable[[int, int, int], None] = lambda done, total, bad: None,
) -> Prepared:
    """Make the store of these items, or what is missing of it.

    Args:
        items: With keys of their own.
        out: Folder of the store.
        settings: What is done to every image.
        workers: Processes; 0 works in this one. The result does not depend on it.
        report: Called with the numbers of items done, of all items and of faults.

    Returns:
        What the store holds now.

    Raises:
        ImageError: If the folder is another input's store, or no item can be used.
        OSError: If the store cannot be written.
    """
    # Other processes need not work in the folder that this one works in.
    out = out.absolute()
    items = [item._replace(path=item.path.absolute()) for item in items]
    out.mkdir(parents=True, exist_ok=True)
    with _only_one(out):
        remove_parts(out)
        known = read_journal(out)
        keys = {item.key for item in items}
        if known and not keys & known.keys():
            raise ImageError(
                f"{file_name(out)}: holds a store of other images; choose another folder"
            )
        signatures = {item.key: _signature(item, settings) for item in items}
        entries = {
            item.key: known[item.key]
            for item in items
            if item.key in known and is_current(known[item.key], signatures[item.key], out)
        }
        todo = [item for item in items if item.key not in entries]
        kept, faults = len(entries), []
        report(kept, len(items), 0)
        with open(out / JOURNAL, "ab") as journal:
            journal.write(b"\n")  # ends a line that was cut
            work = partial(prepare_item, settings=settings, out=out)
            for index, outcome in run_tasks(work, todo, workers=workers):
                item = todo[index]
                if isinstance(outcome, Died):
                    outcome = Outcome([], [Fault(item.key, outcome.reason)])
                faults += outcome.faults
                entry = Entry(signatures[item.key], outcome)
                if not outcome.faults:
                    journal.write(journal_line(item.key, entry))
                    journal.flush()
                entries[item.key] = entry
                report(len(entries), len(items), len(faults))
        return _finish(out, entries, faults, kept=kept)


def prepare_item(item: Item, *, settings: Settings, out: Path) -> Outcome:
    """Read one item and write its images to the store.

    Args:
        item: What to read.
        settings: What is done to it.
        out: Folder of the store.

    Raises:
        OSError: If the store cannot be written. Faults of the item are returned instead.
    """
    outcome = Outcome([], [])
    try:
        frames = read_frames(item.path, spacing=item.spacing)
    except Exception as error:  # whatever a decoder makes of a damaged file
        return Outcome([], [Fault(item.key, _reason(error, item))])
    count = len(frames)
    for index, frame in enumerate(frames):
        key = item.key if count == 1 else f"{item.key}[{index}]"
        try:
            image = frame._replace(modality=item.modality or frame.modality)
            array, window, image, numbers = _prepare(image, settings)
        except Exception as error:
            outcome.faults.append(Fault(key, _reason(error, item)))
            continue
        weight = item.weight * (2 * count - 1) / count**2
        record = _describe(item, image, key=key, weight=weight, settings=settings)
        name = _file_of(key)
        stored = StoredImage(
            key=key,
            shape=(array.shape[0], array.shape[1], array.shape[2], array.shape[3]),
            spacing=image.spacing,
            window=window,
            modality=image.modality,
            preprocessing=record["preprocessing"],
        )
        content = write_volume(out / name, array, stored)
        outcome.records.append(
            Record(
                **record,
                **numbers,
                file=name,
                dtype=str(array.dtype),
                window=list(window),
                num_bytes=len(content),
                sha256=hashlib.sha256(content).hexdigest(),
            )
        )
    return outcome


def _prepare(image: Image, settings: Settings) -> tuple[np.ndarray, Window, Image, dict[str, Any]]:
    """Voxels to store, their window, the image that they are, and statistics of the source."""
    image, window = cut_to_body(image, crop=settings.crop, percentiles=settings.percentiles)
    numbers = statistics(image.array)
    bound = settings.max_in_plane
    if bound is None or min(image.array.shape[2:]) <= bound:
        return *storable(image.array, window), image, numbers
    is_bytes = image.array.dtype == np.uint8
    image = bound_in_plane(image._replace(array=scale(image.array, window)), bound)
    unit = Window(0.0, 1.0)
    if is_bytes:
        image, unit = image._replace(array=np.rint(image.array * 255)), Window(0.0, 255.0)
    return *storable(image.array, unit), image, numbers


def _describe(
    item: Item, image: Image, *, key: str, weight: float, settings: Settings
) -> dict[str, Any]:
    return {
        "key": key,
        "dataset": item.dataset,
        "modality": image.modality,
        "weight": weight,
        "shape": list(image.array.shape),
        "spacing": list(image.spacing),
        "degree": image.spacing.degree(),
        "original_shape": list(image.axes.grid.size),
        "original_spacing": list(image.axes.grid.spacing),
        "axes": list(image.axes.order),
        "flips": list(image.axes.flips),
        "direction": [list(row) for row in image.direction],
        "origin": list(image.origin),
        "preprocessing": settings.digest(),
    }


def _finish(out: Path, entries: Mapping[str, Entry], faults: list[Fault], *, kept: int) -> Prepared:
    """Write what is known of all images, sorted, and remove what nobody asked for."""
    records = [record for key in entries for record in entries[key].outcome.records]
    records.sort(key=lambda record: record.key)
    faults = sorted(faults)
    wanted = {record.file for record in records}
    stale = [
        path
        for path in (out / IMAGES).rglob(f"*{SUFFIX}")
        if path.relative_to(out).as_posix() not in wanted
    ]
    write_catalogue(out, records)
    write_atomic(out / QUARANTINE, to_lines(fault._asdict() for fault in faults))
    for path in stale:
        path.unlink()
    if stale:
        _log.info("%d images removed that the input has no more", len(stale))
    whole = [key for key in sorted(entries) if not entries[key].outcome.faults]
    write_atomic(out / JOURNAL, b"".join(journal_line(key, entries[key]) for key in whole))
    remove_parts(out)
    if not records:
        raise ImageError(
            f"none of the {len(entries)} files can be used; {file_name(out / QUARANTINE)} says why"
        )
    return Prepared(records, faults, kept)


def _signature(item: Item, settings: Settings) -> str:
    """Hash of a source's size and time of change, and of all that decides what becomes of it."""
    try:
        files = sorted(item.path.iterdir()) if item.path.is_dir() else [item.path]
        state = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    except OSError:
        state = []
    given = [item.dataset, item.modality, item.spacing, item.weight]
    return hash_of([repr(state), given, settings.digest()])


def _file_of(key: str) -> str:
    """File of an image: readable, safe on every file system, different for different keys."""
    digest = hashlib.sha256(key.encode("utf-8", "backslashreplace")).hexdigest()
    readable = re.sub(r"[^A-Za-z0-9.]+", "_", key).strip("._")[-60:].lstrip("._")
    return f"{IMAGES}/{digest[:2]}/{readable}-{digest[:12]}{SUFFIX}"


def _reason(error: Exception, item: Item) -> str:
    """What is wrong with an item, without its place on this machine."""
    if isinstance(error, MemoryError):
        return "too large for the memory"
    words = one_line(error)
    if not isinstance(error, ImageError):
        words = f"{type(error).__name__}: {words}"
    name = file_name(item.path)
    words = re.sub(rf"^{re.escape(name)}(\[\d+\])?: ", "", words)
    return words.replace(name, item.key)


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Refuse to work where another run does; a killed run locks nothing."""
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise ImageError(f"{file_name(folder)}: another run is writing there") from error
    finally:
        os.close(handle)
