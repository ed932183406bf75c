"""Find damage in a store: every file is compared with the checksum that was noted for it."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from spadnet.data.atomic import write_atomic
from spadnet.data.catalogue import FILE, read_catalogue
from spadnet.data.image import ImageError, file_name, one_line
from spadnet.data.journal import Fault
from spadnet.data.prepare_item import IMAGES
from spadnet.data.store import SUFFIX, open_volume

SUMS = "SHA256SUMS"
"""Checksums of all files but the images, as ``sha256sum -c`` reads them; the last file written."""

_PIECE = 1 << 20


class _Expected(NamedTuple):
    file: str
    sha256: str


def write_sums(folder: Path, names: Sequence[str]) -> None:
    """Note the checksums of the files of a finished store.

    Args:
        folder: The store.
        names: Files in it.
    """
    lines = [f"{_sha256(folder / name)}  {name}\n" for name in sorted(names)]
    write_atomic(folder / SUMS, "".join(lines).encode())


def find_damage(
    folder: Path,
    *,
    threads: int = 4,
    report: Callable[[int, int, int], None] = lambda done, total, bad: None,
) -> list[Fault]:
    """Compare every file of a store with its checksum.

    Args:
        folder: The store.
        threads: Files read at once.
        report: Called with the numbers of files checked, of all files and of damaged ones.

    Returns:
        Damaged, missing and unknown files, sorted; empty if all is well.

    Raises:
        ImageError: If there is no store.
    """
    if not (folder / FILE).is_file():
        read_catalogue(folder)  # says so
    expected, faults = list(_noted(folder)), []
    try:
        records = read_catalogue(folder)
    except ImageError as error:
        records = []
        faults.append(Fault(FILE, str(error).removeprefix(f"{file_name(folder / FILE)}: ")))
    expected += [_Expected(record.file, record.sha256) for record in records]
    if not any(entry.file == FILE for entry in expected):
        faults.append(Fault(SUMS, "missing or damaged: the run that made the store did not end"))
    with ThreadPoolExecutor(max(threads, 1)) as pool:
        checks = pool.map(lambda entry: _check(folder, entry), expected)
        for done, fault in enumerate(checks, 1):
            faults += [] if fault is None else [fault]
            report(done, len(expected), len(faults))
    if records:
        known = {record.file for record in records}
        for path in (folder / IMAGES).rglob(f"*{SUFFIX}"):
            name = path.relative_to(folder).as_posix()
            if name not in known:
                faults.append(Fault(name, "not in the catalogue"))
    return sorted(set(faults))


def _noted(folder: Path) -> Iterator[_Expected]:
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        digest, _, name = line.partition("  ")
        if name and "/" not in name:
            yield _Expected(name, digest)


def _check(folder: Path, entry: _Expected) -> Fault | None:
    path = folder / entry.file
    try:
        if _sha256(path) != entry.sha256:
            return Fault(entry.file, "damaged: its checksum is another")
        if path.suffix == SUFFIX:
            open_volume(path)
    except OSError as error:
        return Fault(entry.file, (error.strerror or one_line(error)).lower())
    except ImageError as error:
        return Fault(entry.file, str(error).removeprefix(f"{file_name(path)}: "))
    return None


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()
