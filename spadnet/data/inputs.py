"""What a store is made from: the images of a folder, of a glob pattern, or of a table."""

import csv
import glob
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from spadnet.data import dicom
from spadnet.data.folder import find_images
from spadnet.data.image import ImageError, file_name
from spadnet.data.io import SUFFIXES
from spadnet.data.recipe_files import find_files
from spadnet.data.recipe_schema import Recipe

_TABLES = (".csv", ".jsonl")
_CHANNEL = re.compile(rf"(.+)_([0-9]{{4}})({'|'.join(map(re.escape, SUFFIXES))})", re.IGNORECASE)


class Rules(NamedTuple):
    """What a recipe says of the images of a file; by default nothing.

    Attributes:
        frames: What the frames weigh; see ``frame_weights``.
        channels: Modalities of the frames, where these are images of their own.
        pixels: "gray" where channels must be equal and one is kept, "rgb" for colour.
        orientation: Code whose first letter tells how slices run where no axis is odd: R
            sagittal, A coronal, S axial; "auto" and "stored" leave it to ``orient``.
        crop: "clip" for the box and the intensities of ``cut_to_body`` with ``clip``.
    """

    frames: str = "series"
    channels: tuple[str, ...] = ()
    pixels: str | None = None
    orientation: str = "auto"
    crop: str = "foreground"


class Item(NamedTuple):
    """One file, or DICOM series of a folder, and what the user knows of it.

    Attributes:
        path: Where it is.
        key: Its name in the store, unique.
        dataset: Data set it belongs to.
        modality: DICOM's code; None leaves it to the file.
        spacing: In mm along the file's own axes, slowest first; None leaves it to the file.
        weight: How often it is drawn, relative to others of its data set.
        rules: What a recipe adds.
        files: Of a folder, names of the files that are meant; None for all.
        other_channels: Files with the channels that follow those of the first, on its grid.
    """

    path: Path
    key: str
    dataset: str
    modality: str | None = None
    spacing: tuple[float, float, float] | None = None
    weight: float = 1.0
    rules: Rules = Rules()
    files: tuple[str, ...] | None = None
    other_channels: tuple[Path, ...] = ()

    @property
    def paths(self) -> tuple[Path, ...]:
        """Where all of its channels are."""
        return (self.path, *self.other_channels)


def list_items(
    source: str,
    *,
    dataset: str | None = None,
    columns: Sequence[Sequence[str]] = (("path",),),
    num_files: int = 1,
) -> list[Item]:
    """List the images of an input.

    Args:
        source: A folder, searched with its subfolders; a glob pattern such as ``data/**/*.nii.gz``;
            or a table, ``.csv`` or ``.jsonl``, with a column ``path`` (relative to the table) and
            perhaps ``key``, ``dataset``, ``modality``, ``weight`` and ``spacing`` (z y x in mm,
            separated by spaces, or a list in JSON). Other columns are ignored.
        dataset: Name of the data set where the table gives none; by default the folder's name.
        columns: Of a table, those with the files of an image, in the order of its channels. Of
            several choices the first that the table has is taken.
        num_files: Files of an image where there is no table: those named ``CASE_0000.nii.gz``,
            ``CASE_0001.nii.gz`` and so on, as nnU-Net names channels, are the image
            ``CASE.nii.gz``. One that is missing is found out when the image is read.

    Returns:
        Items, sorted by key.

    Raises:
        ImageError: If there is nothing, or two images have one key.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        name = dataset or path.resolve().name
        found = [(file.relative_to(path).as_posix(), file) for file in find_images(path)]
        items = [Item(file, key if key != "." else name, name) for key, file in found]
    elif is_table(path):
        items = _read_table(path, dataset=dataset or path.stem, columns=columns)
    elif path.is_file():
        items = [Item(path, path.name, dataset or path.resolve().parent.name)]
    elif glob.has_magic(source):
        items = _match(path, dataset=dataset)
    else:
        raise ImageError(f"{file_name(path)}: no such file or folder")
    if num_files > 1 and not is_table(path):
        items = _join_channels(items, num_files)
    _refuse_repeated(items, what=file_name(path))
    return _named(items)


def is_table(path: Path) -> bool:
    """Whether an input is a table of images, told by its name."""
    return path.suffix.lower() in _TABLES and not path.is_dir()


def list_recipe_items(
    recipe: Recipe, folder: str | Path, *, dataset: str | None = None
) -> list[Item]:
    """List the images of a copy of a public data set.

    Args:
        recipe: Of the set.
        folder: Of the set, or the one that it lies in.
        dataset: Name to give it; by default the recipe's.

    Returns:
        Items, sorted by key. What the recipe knows and the copy lacks is logged.

    Raises:
        ImageError: If nothing is where the recipe says; the message names what was looked for.
    """
    return _named(
        Item(
            path=source.path,
            key=source.key,
            dataset=dataset or source.dataset,
            modality=source.modality,
            weight=source.weight,
            rules=Rules(
                frames=source.frames,
                channels=source.channels,
                pixels=source.pixels,
                orientation=source.orientation,
                crop=source.crop,
            ),
        )
        for source in find_files(recipe, Path(folder).expanduser())
    )


def split_series(items: Iterable[Item]) -> list[Item]:
    """Make each DICOM series of a folder an item of its own, so that none suffers from another.

    Args:
        items: As listed. Headers are read where an item is a folder.

    Returns:
        Items, sorted by key. A folder with one series stays as it is; of several, each has the name
        of its series, or of its only file, behind the folder's key.

    Raises:
        ImageError: If two images have one key.
    """
    split = []
    for item in items:
        is_whole = item.rules.channels or item.other_channels or item.files is not None
        if is_whole or not item.path.is_dir():
            split.append(item)
            continue
        for part in dicom.split_series(item.path):
            key = f"{item.key}/{part.name}" if part.name else item.key
            split.append(item._replace(key=key, path=part.path, files=part.files))
    _refuse_repeated(split, what="the input")
    return _named(split)


def _refuse_repeated(items: Iterable[Item], *, what: str) -> None:
    repeated = [key for key, count in Counter(item.key for item in items).items() if count > 1]
    if repeated:
        raise ImageError(f"{what}: {repeated[0]} is listed twice")


def _named(items: Iterable[Item]) -> list[Item]:
    """Items with names that can be printed, sorted by key."""
    named = [
        item._replace(key=file_name(item.key), dataset=file_name(item.dataset)) for item in items
    ]
    return sorted(named, key=lambda item: item.key)


def _join_channels(items: Iterable[Item], num_files: int) -> list[Item]:
    """One item for the files of a case, told by their names; other files stay as they are."""
    joined: dict[Item, None] = {}
    for item in items:
        found = None if item.path.is_dir() else _CHANNEL.fullmatch(item.path.name)
        if found is not None and int(found[2]) < num_files:
            case, _, ending = found.groups()
            first, *others = (
                item.path.with_name(f"{case}_{number:04d}{ending}") for number in range(num_files)
            )
            key = PurePosixPath(item.key).with_name(case + ending).as_posix()
            item = item._replace(path=first, key=key, other_channels=tuple(others))
        joined[item] = None
    return list(joined)


def _match(pattern: Path, *, dataset: str | None) -> list[Item]:
    """Matching files, and the images of matching folders; keys start where the pattern does."""
    fixed = next(i for i, part in enumerate(pattern.parts) if glob.has_magic(part))
    root = Path(*pattern.parts[:fixed])
    matched = [Path(name) for name in sorted(set(glob.glob(str(pattern), recursive=True)))]
    folders = {path for path in matched if path.is_dir()}
    # What lies in a folder that matches is found with the folder.
    files = {path for path in matched if path.is_file() and folders.isdisjoint(path.parents)}
    for folder in folders:
        if folders.isdisjoint(folder.parents):
            with suppress(ImageError):  # no images in this one; in all of them is an error
                files.update(find_images(folder))
    if not files:
        what = "no image in the folders that match" if folders else "no file matches"
        raise ImageError(f"{file_name(pattern)}: {what}")
    name = dataset or root.resolve().name
    keys = {path: path.relative_to(root).as_posix() for path in files}
    return [Item(path, name if key == "." else key, name) for path, key in keys.items()]


def _read_table(path: Path, *, dataset: str, columns: Sequence[Sequence[str]]) -> list[Item]:
    name = file_name(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ImageError(f"{name}: {getattr(error, 'strerror', None) or 'not UTF-8'}") from error
    rows: list[Mapping[str, Any]]
    if path.suffix.lower() == ".csv":
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
    else:
        lines = text.removesuffix("\n").split("\n") if text else []
        rows = [_row(line, name=name, number=i) for i, line in enumerate(lines, 1)]
    if not rows:
        raise ImageError(f"{name}: a table without rows")
    chosen = next((names for names in columns if all(one in rows[0] for one in names)), None)
    if chosen is None:
        wanted = " or ".join(", ".join(names) for names in columns)
        there = ", ".join(column for column in rows[0] if column)
        raise ImageError(f"{name}: no column {wanted}; there are {there}")
    first = 2 if path.suffix.lower() == ".csv" else 1
    return [
        _item(row, chosen, folder=path.parent, dataset=dataset, where=f"{name}: line {number}")
        for number, row in enumerate(rows, first)
    ]


def _row(line: str, *, name: str, number: int) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ImageError(f"{name}: line {number} is not JSON") from error
    if not isinstance(row, dict):
        raise ImageError(f"{name}: line {number} is not an object")
    return row


def _item(
    row: Mapping[str, Any], columns: Sequence[str], *, folder: Path, dataset: str, where: str
) -> Item:
    given = [str(row.get(column) or "").strip() for column in columns]
    for column, file in zip(columns, given, strict=True):
        if not file:
            raise ImageError(f"{where} has no {column!r}")
    path, *others = (folder / Path(file).expanduser() for file in given)
    spacing = row.get("spacing") or None
    if isinstance(spacing, str):
        spacing = spacing.split()
    try:
        millimetres = None if spacing is None else tuple(float(value) for value in spacing)
        given_weight = row.get("weight")
        weight = 1.0 if given_weight in (None, "") else float(str(given_weight))
    except (TypeError, ValueError) as error:
        raise ImageError(f"{where}: spacing and weight must be numbers") from error
    if millimetres is not None and len(millimetres) != 3:
        raise ImageError(f"{where}: spacing must have three values, z y x")
    if not 0 <= weight < float("inf"):
        raise ImageError(f"{where}: weight {weight} must be finite and not negative")
    return Item(
        path=path,
        key=str(row.get("key") or given[0]),
        dataset=str(row.get("dataset") or dataset),
        modality=str(row["modality"]) if row.get("modality") else None,
        spacing=None if millimetres is None else (millimetres[0], millimetres[1], millimetres[2]),
        weight=weight,
        other_channels=tuple(others),
    )
