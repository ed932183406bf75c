"""Find the images of a copy of a data set by its recipe, and say what each of them is."""

import csv
import hashlib
import json
import logging
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from spadnet.data.globs import find_glob
from spadnet.data.image import ImageError, file_name, one_line
from spadnet.data.io import SUFFIXES
from spadnet.data.recipe_schema import Group, Recipe, Rule, Table

_log = logging.getLogger(__name__)


class Source(NamedTuple):
    """One file or DICOM series of a data set, and what its images are.

    Attributes:
        path: File, or folder with one DICOM series.
        dataset: Name of the data set.
        key: Its name, unique and stable within the data set.
        modality: Such as CT, MRI T1 or US.
        weight: Of each of its images relative to others of the set; that of the set comes on top.
        frames: What the frames of a 4D file weigh; see ``frame_weights``.
        channels: Modalities of its frames where these are images of their own; else empty.
        pixels: "gray" where channels must be equal and one is kept, "rgb" for colour.
        orientation: As in ``Recipe``.
        crop: As in ``Recipe``.
    """

    path: Path
    dataset: str
    key: str
    modality: str
    weight: float
    frames: str
    channels: tuple[str, ...]
    pixels: str | None
    orientation: str
    crop: str


class _Found(NamedTuple):
    """A path that a group matches, and what the rules may ask about it."""

    path: Path
    group: Group
    facts: Mapping[str, str]
    channels: tuple[str, ...] = ()

    def holds(self, rule: Rule) -> re.Match[str] | bool:
        """Whether a rule's conditions are true; the last match where it has any."""
        found: re.Match[str] | bool = True
        for fact, pattern in rule.where:
            if fact not in self.facts:
                raise ImageError(
                    f"{file_name(self.path)}: a rule asks for {fact!r}, which it lacks"
                )
            if not (found := pattern.search(self.facts[fact]) or False):
                return False
        return found

    def first(self, rules: Sequence[Rule]) -> str | None:
        """Value of the first rule that holds."""
        for rule in rules:
            if found := self.holds(rule):
                return rule.value if found is True else found.expand(rule.value)
        return None

    def modalities(self) -> tuple[str | None, ...]:
        """What its images are: one value, or one for each channel."""
        if not self.channels:
            return (self.first(self.group.modality),)
        return tuple(
            self._replace(facts={**self.facts, "channel": channel}).first(self.group.modality)
            for channel in self.channels
        )


def frame_weight(count: int) -> float:
    """Weight of each of ``count`` near-identical frames: together they count between 1 and 2."""
    return (2 * count - 1) / count**2


def frame_weights(frames: str, count: int) -> list[float]:
    """Weights of the images of one file.

    Args:
        frames: Rule of the source: "series", "first_apart" or "channels".
        count: How many images the file holds.
    """
    if frames == "channels":
        return [1.0] * count
    if frames == "first_apart" and count > 1:
        return [1.0, *[frame_weight(count - 1)] * (count - 1)]
    return [frame_weight(count)] * count


def find_files(recipe: Recipe, root: str | Path) -> list[Source]:
    """Find the images of a data set.

    Args:
        recipe: Recipe of the set.
        root: Folder of the set, or the folder that it lies in under its usual name.

    Returns:
        Sources sorted by path below the root.

    Raises:
        ImageError: If there is no such folder, or nothing in it is where the recipe says.
    """
    root = Path(root)
    name = file_name(root)
    if not root.is_dir():
        raise ImageError(f"{name}: {'not a folder' if root.exists() else 'no such folder'}")
    try:
        for candidate in _roots(recipe, root):
            found, missing = _collect(recipe, candidate)
            if found:
                break
    except OSError as error:
        where = file_name(error.filename or root)
        raise ImageError(f"{where}: {(error.strerror or one_line(error)).lower()}") from error
    if not found:
        raise ImageError(f"{name}: no images of {recipe.name}: {'; '.join(missing)}")
    for reason in missing:
        _log.warning("%s: %s: %s", name, recipe.name, reason)
    found = sorted(found, key=lambda item: item.facts["path"])
    kept = [item for item in found if not any(item.holds(rule) for rule in recipe.skip)]
    if recipe.drop_duplicates:
        kept = _without_duplicates(kept)
    told = [item for item in kept if None not in item.modalities()]
    if len(told) < len(kept):
        lost = next(item for item in kept if None in item.modalities())
        _log.warning(
            "%s: %s: %d left out, no rule tells what they are; the first is %s",
            name,
            recipe.name,
            len(kept) - len(told),
            file_name(lost.path),
        )
    if not told:
        raise ImageError(f"{name}: all {len(found)} images of {recipe.name} are left out by rules")
    return _sources(recipe, told)


def _roots(recipe: Recipe, root: Path) -> list[Path]:
    """Where the set may start: its usual folder below the one given, or that one itself."""
    wanted = _plain(recipe.root.rpartition("/")[2])
    below = [child for child in sorted(root.iterdir()) if _plain(child.name) == wanted]
    roots = [root / recipe.root, *below, root]
    return [folder for folder in dict.fromkeys(roots) if folder.is_dir()]


def _plain(name: str) -> str:
    """A name without case and diacritics."""
    letters = unicodedata.normalize("NFKD", name)
    return "".join(letter for letter in letters if not unicodedata.combining(letter)).casefold()


def _collect(recipe: Recipe, root: Path) -> tuple[list[_Found], list[str]]:
    """Images below a root, each once, and which patterns find nothing."""
    found: dict[Path, _Found] = {}
    missing = []
    for group in recipe.groups:
        for pattern in group.globs:
            paths = [path for path in find_glob(root, pattern) if _is_kind(path, group.kind)]
            channels = _channel_names(root / group.channels) if group.channels and paths else ()
            for path in paths:
                facts = {"path": path.relative_to(root).as_posix()}
                found.setdefault(path, _Found(path, group, facts, channels))
            if not paths:
                missing.append(f"nothing matches {pattern!r}")
        if group.table is not None:
            if not (root / group.table.file).is_file():
                missing.append(f"there is no {group.table.file!r}")
                continue
            rows, absent = list(_rows(group.table, root)), 0
            if not rows:
                missing.append(f"{group.table.file!r} lists none")
            for path, row in rows:
                if _is_kind(path, group.kind):
                    facts = {**row, "path": path.relative_to(root).as_posix()}
                    found.setdefault(path, _Found(path, group, facts))
                else:
                    absent += 1
            if absent:
                missing.append(f"{absent} images of {group.table.file!r} are not there")
    return list(found.values()), missing


def _channel_names(path: Path) -> tuple[str, ...]:
    """Names of the channels in the ``dataset.json`` of a decathlon task."""
    try:
        names = json.loads(path.read_text(encoding="utf-8"))["modality"]
        return tuple(str(names[key]) for key in sorted(names, key=int))
    except OSError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        name = file_name(path)
        raise ImageError(f"{name}: 'modality' does not name the channels") from error


def _is_kind(path: Path, kind: str) -> bool:
    """Whether a path is a file, or a folder with files in it, as the group wants."""
    if kind == "file":
        return path.is_file()
    try:
        return path.is_dir() and any(
            child.is_file() for child in path.iterdir() if not child.name.startswith(".")
        )
    except PermissionError:
        return True  # what cannot be read is quarantined with this reason


def _rows(table: Table, root: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """Paths and columns of the rows of a table that count."""
    file = root / table.file
    name = file_name(file)
    try:
        with open(file, encoding="utf-8-sig", errors="replace", newline="") as stream:
            rows = list(csv.DictReader(stream, delimiter=table.delimiter, restval=""))
    except csv.Error as error:
        raise ImageError(f"{name}: not a table ({one_line(error)})") from error
    places = re.findall(r"\{(.+?)\}", table.path)
    wanted = {*places, *(column for column, _ in table.at_least)}
    for column in sorted(wanted | ({table.unique} if table.unique else set())):
        if rows and column not in rows[0]:
            raise ImageError(f"{name}: no column {column!r}")
    last = {row[table.unique]: index for index, row in enumerate(rows)} if table.unique else {}
    for index, row in enumerate(rows):
        if table.unique and last[row[table.unique]] != index:
            continue
        # Values beyond the last column are under None.
        facts = {column: value.strip() for column, value in row.items() if column is not None}
        for column in places:  # the downloader writes those of its own system
            facts[column] = facts[column].replace("\\", "/")
        if any(_number(facts[column], name=name) < count for column, count in table.at_least):
            continue
        place = re.sub(r"\{(.+?)\}", lambda found: facts[found[1]], table.path)  # noqa: B023
        parts = [part for part in place.split("/") if part not in ("", ".")]
        if not parts or ".." in parts:
            raise ImageError(f"{name}: row {index + 1} leads to {place!r}, outside the data set")
        yield file.parent.joinpath(*parts), facts


def _number(text: str, *, name: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ImageError(f"{name}: {text!r} is not a number") from None


def _without_duplicates(items: Sequence[_Found]) -> list[_Found]:
    sizes = Counter(item.path.stat().st_size for item in items)
    seen: set[bytes] = set()
    kept = []
    for item in items:
        if sizes[item.path.stat().st_size] > 1:
            digest = hashlib.blake2b(item.path.read_bytes()).digest()
            if digest in seen:
                continue
            seen.add(digest)
        kept.append(item)
    return kept


def _sources(recipe: Recipe, items: Sequence[_Found]) -> list[Source]:
    """Give every image its key and weight."""
    weights = _series_weights(items)
    sources = []
    for item, key in zip(items, _keys(recipe, items), strict=True):
        modalities = tuple(str(modality) for modality in item.modalities())
        apart = item.group.frames == "channels"
        sources.append(
            Source(
                path=item.path,
                dataset=recipe.name,
                key=key,
                modality=modalities[0],
                weight=weights.get(item.path, 1.0),
                frames=item.group.frames,
                channels=modalities if apart else (),
                pixels=recipe.pixels,
                orientation=recipe.orientation,
                crop=recipe.crop,
            )
        )
    return sources


def _keys(recipe: Recipe, items: Sequence[_Found]) -> list[str]:
    """Names by the recipe's rules; those that clash get a hash of the path below the root."""
    keys = [item.first(recipe.key) or _stem(item.path) for item in items]
    counts = Counter(keys)
    return [
        key if counts[key] == 1 else f"{key}-{_short_hash(item.facts['path'])}"
        for key, item in zip(keys, items, strict=True)
    ]


def _stem(path: Path) -> str:
    name = path.name
    endings = [suffix for suffix in SUFFIXES if name.lower().endswith(suffix)]
    return name[: -len(max(endings, key=len))] if endings else name


def _short_hash(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=4).hexdigest()


def _series_weights(items: Sequence[_Found]) -> dict[Path, float]:
    """Weights of frames that are files of their own: number 0 stands apart from the others."""
    cases: dict[str, list[Path]] = defaultdict(list)
    for item in items:
        if item.group.series is not None:
            found = item.group.series.search(item.facts["path"])
            if found is not None and int(found[2]) != 0:
                cases[found[1]].append(item.path)
    return {path: frame_weight(len(paths)) for paths in cases.values() for path in paths}
