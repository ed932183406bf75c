"""Make a store from image files: in parallel, and again and again with the same result.

A run may be killed at any moment. What is done is noted in a journal, so that the next run goes on
from there and ends with the same bytes as one that nobody disturbed.
"""

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from spadnet.data.atomic import remove_parts, write_atomic
from spadnet.data.catalogue import Record, to_lines, write_catalogue
from spadnet.data.image import ImageError, file_name
from spadnet.data.inputs import Item
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
from spadnet.data.prepare_item import IMAGES, Settings, prepare_item
from spadnet.data.store import SUFFIX
from spadnet.data.workers import Died, run_tasks

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

QUARANTINE = "quarantine.jsonl"

_log = logging.getLogger(__name__)


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
    time_limit: float | None = None,
    report: Callable[[int, int, int], None] = lambda done, total, bad: None,
) -> Prepared:
    """Make the store of these items, or what is missing of it.

    Args:
        items: With keys of their own.
        out: Folder of the store.
        settings: What is done to every image.
        workers: Processes; 0 works in this one. The result does not depend on it.
        time_limit: Seconds after which a file is given up; without workers there is no limit.
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
        _check_same_store(items, known, out)
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
            for index, outcome in run_tasks(work, todo, workers=workers, time_limit=time_limit):
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


def _check_same_store(items: Sequence[Item], known: Mapping[str, Entry], out: Path) -> None:
    """Refuse to replace the images of another input."""
    held = {record.dataset for entry in known.values() for record in entry.outcome.records}
    if known and known.keys().isdisjoint(item.key for item in items):
        what = "a store of other images"
    elif held and held.isdisjoint(item.dataset for item in items):
        what = f"a store of data set {min(held)!r}, not {items[0].dataset!r}"
    else:
        return
    raise ImageError(f"{file_name(out)}: holds {what}; choose another folder")


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
        _log.info("removed what the input has no more: %d of the store's images", len(stale))
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
        files = [item.path]
        if item.files is not None:
            files = [item.path / name for name in item.files]
        elif item.path.is_dir():
            files = sorted(item.path.iterdir())
        state = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    except OSError:
        state = []
    given = [item.dataset, item.modality, item.spacing, item.weight, item.rules]
    return hash_of([repr(state), given, settings.digest()])


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
