"""What a recipe of a data set may say, and reading one from its YAML file: strict and explained."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from spadnet.near_names import suggest

FRAMES = ("series", "first_apart", "channels")
KINDS = ("file", "dicom")
ORIENTATIONS = ("auto", "stored", "RAS", "ASR", "SRA", "SAR")
CROPS = ("foreground", "clip")
PIXELS = ("gray", "rgb")
BRANCHES = ("run", "release", "development")
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where it was built


class Rule(NamedTuple):
    """What holds for an image about which certain facts are true.

    Attributes:
        where: Names of facts and the patterns that must be found in them; facts are ``path``
            below the root, the columns of a table, and ``channel``.
        value: The consequence; ``\\1`` stands for a group of the last pattern.
    """

    where: tuple[tuple[str, re.Pattern[str]], ...]
    value: str


class Table(NamedTuple):
    """A CSV file that lists images.

    Attributes:
        file: Below the root.
        path: Place of an image relative to the table; ``{column}`` stands for a value.
        delimiter: Between values.
        unique: Column of which only the last row of each value counts; None where all rows do.
        at_least: Columns and the smallest numbers that let a row count.
    """

    file: str
    path: str
    delimiter: str
    unique: str | None
    at_least: tuple[tuple[str, int], ...]


class Group(NamedTuple):
    """Images of a data set that are found and read alike.

    Attributes:
        globs: Patterns below the root: ``*``, ``**``, ``[0-9]``, ``{a,b}``, and ``{case}`` for the
            name of the last folder before it that a wildcard matched.
        table: The list of the images instead of patterns.
        kind: Whether an image is a file or a folder with one DICOM series.
        modality: Rules of which the first that holds tells; images without one are left out.
        frames: What the n frames of a file weigh: each f(n) ("series"), the first 1 and the others
            f(n - 1) ("first_apart"), each 1 with a modality of its own ("channels").
        series: Pattern with the groups case and number, where frames are files of their own: number
            0 weighs 1, each of the n others of the case f(n).
        channels: JSON file below the root that names the channels.
    """

    globs: tuple[str, ...]
    table: Table | None
    kind: str
    modality: tuple[Rule, ...]
    frames: str
    series: re.Pattern[str] | None
    channels: str | None


class Recipe(NamedTuple):
    """Where the images of one public data set lie and what each image is.

    Attributes:
        name: As its authors write it.
        root: Folder that the patterns start from, as in the published run.
        weight: Of the published run; multiplies the sampling weight of every image in training.
        branch: "run" for the sets of the published run, "release" for one that its script knew
            and the run left out, "development" for later ones.
        home: Web page; None where not known for sure.
        licence: None where not known for sure.
        citation: None where not known for sure.
        pixels: "gray" where channels must be equal and one is kept, "rgb" for colour.
        orientation: How the published script turned volumes; "auto" is its rule of the most equal
            in-plane spacing, from RAS. spadnet turns the odd axis to z whatever is said here.
        crop: "clip" for the box above the 0.23 percentile, with intensities clipped there and at
            the 99.73; else the box of the foreground.
        drop_duplicates: Whether only the first of byte-equal files is taken.
        skip: Rules of which none may hold.
        key: Rules of which the first that holds names the image; else its file name does.
        groups: What there is.
    """

    name: str
    root: str
    weight: float
    branch: str
    home: str | None
    licence: str | None
    citation: str | None
    pixels: str | None
    orientation: str
    crop: str
    drop_duplicates: bool
    skip: tuple[Rule, ...]
    key: tuple[Rule, ...]
    groups: tuple[Group, ...]

    @property
    def modalities(self) -> list[str]:
        """What its images are, in the order of the file."""
        values = [rule.value for group in self.groups for rule in group.modality]
        return list(dict.fromkeys(re.sub(r"\s*\\\d", "", value) for value in values))


class _Section:
    """A mapping of a recipe whose values are taken one by one; what remains is unknown."""

    def __init__(self, data: Any, *, where: str) -> None:
        if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
            raise ValueError(f"{where}: expected keys with values, got {data!r}")
        self.data, self.where, self.taken = data, where, set[str]()

    def fail(self, key: str, wanted: str) -> ValueError:
        return ValueError(f"{self.where}: {key} must be {wanted}, got {self.data.get(key)!r}")

    def any(self, key: str) -> Any:
        self.taken.add(key)
        return self.data.get(key)

    def text(self, key: str) -> str:
        value = self.optional(key)
        if value is None:
            raise self.fail(key, "a text")
        return value

    def optional(self, key: str) -> str | None:
        value = self.any(key)
        if value is not None and not (isinstance(value, str) and value):
            raise self.fail(key, "a text")
        return value

    def choice(self, key: str, options: Sequence[str]) -> str:
        value = self.data.get(key, options[0])
        self.taken.add(key)
        if value not in options:
            raise self.fail(key, f"one of {', '.join(options)}")
        return str(value)

    def sections(self, key: str) -> list["_Section"]:
        value = self.any(key)
        if value is not None and not isinstance(value, list):
            raise self.fail(key, "a list")
        return [
            _Section(item, where=f"{self.where}: {key}[{index}]")
            for index, item in enumerate(value or [])
        ]

    def done(self) -> None:
        for key in self.data:
            if key not in self.taken:
                raise ValueError(f"{self.where}: unknown key {key!r}{suggest(key, self.taken)}")


def read_recipe(path: Path) -> Recipe:
    """Read a recipe.

    Args:
        path: YAML file.

    Raises:
        ValueError: If it cannot be read or does not make sense; the message names the key.
    """
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), Loader=_LOADER)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise ValueError(f"{path}: {reason}") from error
    section = _Section(data, where=path.name)
    weight = section.data.get("weight", 1.0)
    section.taken.add("weight")
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        raise section.fail("weight", "a number")
    if not (math.isfinite(weight) and weight > 0):
        raise section.fail("weight", "positive")
    drop_duplicates = section.any("drop_duplicates")
    if drop_duplicates not in (None, True, False):
        raise section.fail("drop_duplicates", "true or false")
    pixels = section.optional("pixels")
    if pixels not in (None, *PIXELS):
        raise section.fail("pixels", f"one of {', '.join(PIXELS)}")
    recipe = Recipe(
        name=section.text("name"),
        root=section.text("root"),
        weight=float(weight),
        branch=section.choice("branch", BRANCHES),
        home=section.optional("home"),
        licence=section.optional("licence"),
        citation=section.optional("citation"),
        pixels=pixels,
        orientation=section.choice("orientation", ORIENTATIONS),
        crop=section.choice("crop", CROPS),
        drop_duplicates=bool(drop_duplicates),
        skip=tuple(_rule(item, value="") for item in section.sections("skip")),
        key=tuple(_rule(item, value=None) for item in section.sections("key")),
        groups=tuple(_group(item) for item in section.sections("files")),
    )
    section.done()
    if not recipe.groups:
        raise section.fail("files", "a list")
    return recipe


def _group(section: _Section) -> Group:
    globs, table = section.any("globs"), section.any("table")
    if (globs is None) == (table is None):
        raise ValueError(f"{section.where}: give either globs or a table")
    if globs is not None and not (
        isinstance(globs, list) and globs and all(isinstance(glob, str) for glob in globs)
    ):
        raise section.fail("globs", "a list of texts")
    if isinstance(section.data.get("modality"), str):
        modality: tuple[Rule, ...] = (Rule((), section.text("modality")),)
    else:
        modality = tuple(_rule(item, value=None) for item in section.sections("modality"))
    if not modality:
        raise section.fail("modality", "a text or a list of rules")
    series = section.optional("series")
    group = Group(
        globs=tuple(globs or ()),
        table=None if table is None else _table(_Section(table, where=f"{section.where}: table")),
        kind=section.choice("kind", KINDS),
        modality=modality,
        frames=section.choice("frames", FRAMES),
        series=None if series is None else _pattern(series, where=section.where),
        channels=section.optional("channels"),
    )
    section.done()
    if group.series is not None and group.series.groups != 2:
        raise section.fail("series", "a pattern with two groups, case and number")
    if group.frames == "channels" and group.channels is None:
        raise section.fail("channels", "the file that names the channels")
    return group


def _table(section: _Section) -> Table:
    at_least = section.any("at_least") or {}
    if not isinstance(at_least, dict) or not all(isinstance(v, int) for v in at_least.values()):
        raise section.fail("at_least", "columns with whole numbers")
    table = Table(
        file=section.text("file"),
        path=section.text("path"),
        delimiter=section.optional("delimiter") or ",",
        unique=section.optional("unique"),
        at_least=tuple(at_least.items()),
    )
    section.done()
    return table


def _rule(section: _Section, *, value: str | None) -> Rule:
    """A rule; ``value`` is that of rules that need none of their own."""
    if value is None:
        value = section.text("is")
    where = []
    for fact in section.data:
        if fact not in section.taken:
            where.append((fact, _pattern(section.text(fact), where=section.where)))
    if not where and not value:
        raise ValueError(f"{section.where}: a rule that says nothing")
    return Rule(tuple(where), value)


def _pattern(text: str, *, where: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise ValueError(f"{where}: {text!r} is no pattern: {error}") from error
