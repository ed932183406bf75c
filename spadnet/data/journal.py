"""What runs of ``spadnet preprocess`` have done, noted so that the next one goes on from there."""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from spadnet.data.catalogue import Record, to_lines

JOURNAL = ".journal.jsonl"


class Fault(NamedTuple):
    """A file, or a frame of one, that cannot be used.

    Attributes:
        file: Its key.
        reason: In words, one line.
    """

    file: str
    reason: str


class Outcome(NamedTuple):
    """What became of one item.

    Attributes:
        records: One per image.
        faults: What could not be used.
    """

    records: list[Record]
    faults: list[Fault]


class Entry(NamedTuple):
    """An item of the journal.

    Attributes:
        signature: Hash of the source's state and of all that decides what becomes of it.
        outcome: What became of it.
    """

    signature: str
    outcome: Outcome


def journal_line(key: str, entry: Entry) -> bytes:
    """A line of the journal.

    Args:
        key: Of the item.
        entry: Without faults; what has faults is tried again by the next run.
    """
    records = [record._asdict() for record in entry.outcome.records]
    return to_lines([{"key": key, "signature": entry.signature, "records": records}])


def read_journal(out: Path) -> dict[str, Entry]:
    """What earlier runs have done, by key; a line that was cut counts for nothing."""
    try:
        lines = (out / JOURNAL).read_bytes().splitlines()
    except FileNotFoundError:
        return {}
    known = {}
    for line in lines:
        try:
            row = json.loads(line)
            records = [Record(**record) for record in row["records"]]
            known[row["key"]] = Entry(row["signature"], Outcome(records, []))
        except (ValueError, TypeError, KeyError):
            continue
    return known


def is_current(entry: Entry, signature: str, out: Path) -> bool:
    """Whether the source and what is done to it are the same, and its images are there."""
    if entry.signature != signature:
        return False
    for record in entry.outcome.records:
        try:
            if (out / record.file).stat().st_size != record.num_bytes:
                return False
        except OSError:
            return False
    return True


def hash_of(value: Any) -> str:
    """Short hash of plain values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
