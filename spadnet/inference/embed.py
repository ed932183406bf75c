"""Embed many files, going on where an earlier run stopped.

Each image of a film or of a 4D file has an embedding of its own; their names end in a number.
"""

import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from spadnet.data.atomic import remove_parts
from spadnet.data.inputs import Item
from spadnet.data.io import Image, ImageError, read_frames
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
from spadnet.inference.work_list import (
    frame_file,
    frame_keys,
    frame_signature,
    num_done,
    output_files,
    signature,
    write_quarantine,
)

QUARANTINE = "quarantine.jsonl"

_SAVE_EVERY = 30.0  # seconds between saves of a table that grows


class Embedded(NamedTuple):
    """What became of all items.

    Attributes:
        done: Images that were embedded now; a film or a 4D file has several.
        kept: Images that an earlier run had embedded.
        faults: What cannot be used, sorted.
        quarantine: The file that lists it.
    """

    done: int
    kept: int
    faults: list[Fault]
    quarantine: Path


class Frame(NamedTuple):
    """One image of an item.

    Attributes:
        place: Number of the item.
        number: Of the image within it.
        num_images: Images of the item.
        key: Name of the image.
        signature: Hash of what its embedding is made from.
    """

    place: int
    number: int
    num_images: int
    key: str
    signature: str


class Target(Protocol):
    """Where embeddings go."""

    quarantine: Path

    def num_done(self, place: int, signature: str) -> int:
        """Images of item number ``place``, if all are there and were made from the same; or 0."""

    def add(self, frame: Frame, embedding: Embedding) -> None:
        """Write, or keep for writing."""

    def close(self) -> None:
        """Write what is left."""


class FilePerImage:
    """Writes one file per image with the image's feature and patch tokens."""

    def __init__(self, files: Sequence[Path], *, quarantine: Path) -> None:
        """Name the files of the items; those of several images get numbers."""
        self.files, self.quarantine = files, quarantine

    @classmethod
    def below(cls, items: Sequence[Item], folder: Path, *, format: str) -> "FilePerImage":
        """Files below a folder, named like their items; what a killed run left there is removed."""
        remove_parts(folder)
        files = output_files(items, folder, ending=f".{format}")
        return cls(files, quarantine=folder / QUARANTINE)

    def _file(self, place: int, index: int, count: int) -> Path:
        file = self.files[place]
        return frame_file(file, index, count, ending=file.suffix)

    def num_done(self, place: int, signature: str) -> int:
        """See :class:`Target`."""
        return num_done(signature, lambda *which: signature_in(self._file(place, *which)))

    def add(self, frame: Frame, embedding: Embedding) -> None:
        """See :class:`Target`."""
        file = self._file(frame.place, frame.number, frame.num_images)
        write_embedding(file, frame.key, frame.signature, embedding)

    def close(self) -> None:
        """See :class:`Target`."""


class OneTable:
    """Writes the features of all images into one file, and saves it now and then."""

    def __init__(self, items: Sequence[Item], file: Path) -> None:
        """Read what is there; rows of other images are dropped by the first save."""
        self.items, self.file = items, file
        self.quarantine = file.with_name(f"{file.stem}.{QUARANTINE}")
        self._known = {row.key: row for row in read_table(file)} if file.exists() else {}
        self._rows: dict[str, Row] = {}
        self._num_saved = len(self._known)
        self._has_new = False
        self._saved_at = time.monotonic()

    def num_done(self, place: int, signature: str) -> int:
        """See :class:`Target`."""
        key = self.items[place].key

        def found(index: int, count: int) -> str | None:
            row = self._known.get(frame_keys(key, count)[index])
            return None if row is None else row.signature

        count = num_done(signature, found)
        self._rows.update((name, self._known[name]) for name in frame_keys(key, count))
        return count

    def add(self, frame: Frame, embedding: Embedding) -> None:
        """See :class:`Target`."""
        self._rows[frame.key] = as_row(frame.key, frame.signature, embedding)
        self._has_new = True
        if time.monotonic() - self._saved_at > _SAVE_EVERY:
            self.close()

    def close(self) -> None:
        """See :class:`Target`."""
        if self._rows and (self._has_new or len(self._rows) != self._num_saved):
            write_table(self.file, list(self._rows.values()))
            self._num_saved = len(self._rows)
        self._has_new, self._saved_at = False, time.monotonic()


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
    counts = [target.num_done(place, known) for place, known in enumerate(signatures)]
    todo = [place for place, count in enumerate(counts) if not count]
    kept = len(items) - len(todo)
    done, faults = 0, list[Fault]()
    waiting: deque[Frame] = deque()  # read, and not yet embedded

    def images() -> Iterator[Image]:
        for place in todo:
            item = items[place]
            try:
                frames = read_frames(item.path, spacing=item.spacing, files=item.files)
            except ImageError as error:
                faults.append(Fault(item.key, str(error)))
                continue
            made_from = frame_signature(signatures[place], len(frames))
            for index, key in enumerate(frame_keys(item.key, len(frames))):
                waiting.append(Frame(place, index, len(frames), key, made_from))
                yield frames[index]

    report(kept, len(items), 0)
    try:
        for result in encoder.encode_each(images(), batch_size=batch_size):
            frame = waiting.popleft()
            if isinstance(result, ImageError):
                faults.append(Fault(frame.key, str(result)))
            else:
                target.add(frame, result)
                done += 1
            whole = frame.place + (frame.number + 1 == frame.num_images)
            report(kept + bisect_left(todo, whole), len(items), len(faults))
    finally:
        target.close()
    report(len(items), len(items), len(faults))
    write_quarantine(target.quarantine, faults)
    if not done and not kept:
        raise ImageError(
            faults[0].reason
            if len(faults) == 1
            else f"none of the {len(items)} files can be used; {target.quarantine} says why"
        )
    return Embedded(done, sum(counts), sorted(faults), target.quarantine)
