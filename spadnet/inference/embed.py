"""Embed many files, going on where an earlier run stopped."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from spadnet.data.atomic import remove_parts
from spadnet.data.inputs import Item
from spadnet.data.io import ImageError
from spadnet.data.journal import Fault
from spadnet.inference.embedding_files import (
    Row,
    as_row,
    read_table,
    signature_in,
    write_embedding,
    write_table,
)
from spadnet.inference.encoder import Embedding, Encoder
from spadnet.inference.work_list import output_files, signature, write_quarantine

QUARANTINE = "quarantine.jsonl"

_SAVE_EVERY = 30.0  # seconds between saves of a table that grows


class Embedded(NamedTuple):
    """What became of all items.

    Attributes:
        done: Items that were embedded now.
        kept: Items that an earlier run had embedded.
        faults: What cannot be used, sorted.
        quarantine: The file that lists it.
    """

    done: int
    kept: int
    faults: list[Fault]
    quarantine: Path


class Target(Protocol):
    """Where embeddings go."""

    quarantine: Path

    def has(self, place: int, signature: str) -> bool:
        """Whether item number ``place`` is there and was made from the same."""

    def add(self, place: int, signature: str, embedding: Embedding) -> None:
        """Write, or keep for writing."""

    def close(self) -> None:
        """Write what is left."""


class FilePerImage:
    """Writes one file per image with class token and patch tokens."""

    def __init__(self, items: Sequence[Item], files: Sequence[Path], *, quarantine: Path) -> None:
        """Name the files of the items."""
        self.items, self.files, self.quarantine = items, files, quarantine

    @classmethod
    def below(cls, items: Sequence[Item], folder: Path, *, format: str) -> "FilePerImage":
        """Files below a folder, named like their items; what a killed run left there is removed."""
        remove_parts(folder)
        files = output_files(items, folder, ending=f".{format}")
        return cls(items, files, quarantine=folder / QUARANTINE)

    def has(self, place: int, signature: str) -> bool:
        """See :class:`Target`."""
        return signature_in(self.files[place]) == signature

    def add(self, place: int, signature: str, embedding: Embedding) -> None:
        """See :class:`Target`."""
        write_embedding(self.files[place], self.items[place].key, signature, embedding)

    def close(self) -> None:
        """See :class:`Target`."""


class OneTable:
    """Writes the class tokens of all images into one file, and saves it now and then."""

    def __init__(self, items: Sequence[Item], file: Path) -> None:
        """Read what is there; rows of other images are dropped."""
        self.items, self.file = items, file
        self.quarantine = file.with_name(f"{file.stem}.{QUARANTINE}")
        keys = {item.key for item in items}
        known = read_table(file) if file.exists() else []
        self._rows = {row.key: row for row in known if row.key in keys}
        self._is_saved = len(self._rows) == len(known)
        self._saved_at = time.monotonic()

    def has(self, place: int, signature: str) -> bool:
        """See :class:`Target`."""
        row = self._rows.get(self.items[place].key)
        return row is not None and row.signature == signature

    def add(self, place: int, signature: str, embedding: Embedding) -> None:
        """See :class:`Target`."""
        row: Row = as_row(self.items[place].key, signature, embedding)
        self._rows[row.key] = row
        self._is_saved = False
        if time.monotonic() - self._saved_at > _SAVE_EVERY:
            self.close()

    def close(self) -> None:
        """See :class:`Target`."""
        if not self._is_saved and self._rows:
            write_table(self.file, list(self._rows.values()))
        self._is_saved, self._saved_at = True, time.monotonic()


def embed(
    encoder: Encoder,
    items: Sequence[Item],
    target: Target,
    *,
    settings: object,
    batch_size: int = 8,
    report: Callable[[int, int, int], None] = lambda done, total, bad: None,
) -> Embedded:
    """Embed the items that are not there yet.

    Args:
        encoder: The model.
        items: With keys of their own.
        target: Where embeddings go.
        settings: Plain values that decide the result beside the items: the model's digest and
            options.
        batch_size: See :meth:`spadnet.inference.encoder.Encoder.encode_many`.
        report: Called with the numbers of items done, of all items and of faults.

    Raises:
        ImageError: If no item can be used.
        OSError: If results cannot be written.
    """
    signatures = [signature(item, settings) for item in items]
    todo = [place for place in range(len(items)) if not target.has(place, signatures[place])]
    kept = len(items) - len(todo)
    faults: list[Fault] = []
    report(kept, len(items), 0)
    results = encoder.encode_each((items[place] for place in todo), batch_size=batch_size)
    try:
        for count, (place, result) in enumerate(zip(todo, results, strict=True), start=1):
            if isinstance(result, ImageError):
                faults.append(Fault(items[place].key, str(result)))
            else:
                target.add(place, signatures[place], result)
            report(kept + count, len(items), len(faults))
    finally:
        target.close()
    write_quarantine(target.quarantine, faults)
    if len(faults) == len(items):
        raise ImageError(
            faults[0].reason
            if len(faults) == 1
            else f"none of the {len(items)} files can be used; {target.quarantine} says why"
        )
    return Embedded(len(todo) - len(faults), kept, sorted(faults), target.quarantine)
