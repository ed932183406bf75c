"""``spadnet synthesize``: write random images with known anatomy."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from spadnet.cli.configure import configure
from spadnet.cli.label_maps import map_checksums, read_label_maps
from spadnet.cli.progress import progress
from spadnet.cli.synthetic_folder import PARTS, SHEET, SyntheticFolder, sheet_row
from spadnet.cli.training import plain
from spadnet.cli.usage import UsageError
from spadnet.near_names import suggest
from spadnet.spacing import MAX_DEGREE, Spacing
from spadnet.synthesis import Appearance, LabelMap, SyntheticDataset, label_maps
from spadnet.synthesis.dataset import SOURCES, Anatomy

logger = logging.getLogger(__name__)

_MAX_VOXELS = 1 << 29
_SIDE = (512, 128)  # voxels of an image's side in 2D and in 3D

Size = tuple[int, int, int]


def run(argv: Sequence[str]) -> int:
    """Write samples that are not there yet, then the table and the contact sheet."""
    config = configure("synthesize", argv)
    if config is None:
        return 0
    options = plain(config)
    if options["out"] is None:
        raise UsageError("out=FOLDER is missing: where to write")
    out = Path(str(options["out"])).expanduser()
    save = _parts(options["save"])
    dataset = _dataset(options)
    folder = SyntheticFolder(out, dataset, save=save)
    folder.prepare(_settings(options, dataset), overwrite=options["overwrite"])

    num_shown = min(_count(options, "contact_sheet"), len(dataset))
    missing = [index for index in range(len(dataset)) if not folder.is_done(index)]
    rows = {}
    with progress("synthesize") as report:
        report(0, len(missing), 0)
        for done, index in enumerate(missing, 1):
            item = folder.write(index)
            if index < num_shown:
                rows[index] = sheet_row(item)
            report(done, len(missing), 0)
    folder.write_table()
    if num_shown and (missing or not (out / SHEET).exists()):
        folder.write_sheet([rows.get(i) or sheet_row(dataset[i]) for i in range(num_shown)])
    kept = len(dataset) - len(missing)
    logger.info("%d samples written to %s (%d were there already)", len(missing), out, kept)
    if num_shown:
        logger.info("see %s", out / SHEET)
    return 0


def _dataset(options: dict[str, Any]) -> SyntheticDataset:
    source = options["source"] or ("fields" if options["labels"] is None else "labels")
    if source not in SOURCES:
        raise UsageError(f"unknown source {source!r}{suggest(str(source), SOURCES)}")
    if source == "labels" and options["labels"] is None:
        raise UsageError("labels=FILE or labels=FOLDER is missing: label maps of yours")
    if source != "labels" and options["labels"] is not None:
        raise UsageError(f"labels={options['labels']} needs source=labels, got source={source}")
    if options["spacing"] is not None and options["degree"] is not None:
        raise UsageError("give degree or spacing, not both")
    severity, severities = options["severity"], options["severities"]
    if severity is not None and not (_is_number(severity) and 0 <= severity <= 1):
        raise UsageError(f"severity must be a number from 0 to 1, got {severity}")
    if len(severities) != 2 or not all(map(_is_number, severities)):
        raise UsageError(f"severities must be two numbers from 0 to 1, got {severities}")
    if options["contrast"] not in ("same", "random"):
        raise UsageError(f"contrast must be same or random, got {options['contrast']}")
    spacing, degree = _spacing(options["spacing"]), _degree(options["degree"])
    num_labels = options["num_labels"]
    if num_labels is not None and not (_is_whole(num_labels) and 2 <= num_labels <= 256):
        raise UsageError(f"num_labels must be a whole number from 2 to 256, got {num_labels}")
    size = _size(options["size"], source=source, degree=spacing.degree() if spacing else degree)
    maps = [] if options["labels"] is None else _read_maps(str(options["labels"]))
    return SyntheticDataset(
        _count(options, "num", least=1),
        size=size,
        spacing=spacing,
        degree=degree,
        seed=options["seed"],
        source=cast(Anatomy, source),
        label_maps=maps,
        num_labels=num_labels,
        appearance=None if severity is None else Appearance.at(severity),
        num_views=_count(options, "views"),
        severities=(severities[0], severities[1]),
        contrast=options["contrast"],
    )


def _read_maps(source: str) -> list[LabelMap]:
    """Read label maps that share a numbering."""
    arrays, spacings, names = zip(*read_label_maps(source), strict=True)
    return label_maps(arrays, spacings=spacings, names=names)


def _settings(options: dict[str, Any], dataset: SyntheticDataset) -> dict[str, Any]:
    """All that decides what a sample looks like, as plain types."""
    ignored = ("out", "num", "contact_sheet", "overwrite", "labels")
    settings = {key: value for key, value in options.items() if key not in ignored}
    settings["source"] = dataset.source
    settings["labels"] = map_checksums(dataset.label_maps)
    return settings


def _size(given: Any, *, source: str, degree: int | None) -> Size | None:
    is_flat = degree == MAX_DEGREE
    if given is None:
        if source == "labels":
            return None
        side = _SIDE[not is_flat]
        return (1 if is_flat else side >> (degree or 0), side, side)
    values = given if isinstance(given, list) else [given]
    if not all(map(_is_whole, values)) or len(values) > 3 or min(values, default=0) < 1:
        raise UsageError(f"size must be positive whole numbers [z,y,x], got {given}")
    if len(values) == 1:
        values = [1 if is_flat else values[0], values[0], values[0]]
    depth, height, width = [1, *values][-3:]
    if depth * height * width > _MAX_VOXELS:
        raise UsageError(f"size {depth} x {height} x {width} is more than {_MAX_VOXELS} voxels")
    return depth, height, width


def _spacing(given: Any) -> Spacing | None:
    if given is None:
        return None
    if not isinstance(given, list) or len(given) not in (2, 3) or not all(map(_is_number, given)):
        raise UsageError(f"spacing must be [z,y,x] or [y,x] in mm, got {given}")
    return Spacing.planar(*given) if len(given) == 2 else Spacing(*map(float, given))


def _degree(given: Any) -> int | None:
    if given is not None and not (_is_whole(given) and 0 <= given <= MAX_DEGREE):
        raise UsageError(f"degree must be a whole number from 0 to {MAX_DEGREE}, got {given}")
    return None if given is None else int(given)


def _parts(given: list[Any]) -> list[str]:
    for part in given:
        if part not in PARTS:
            raise UsageError(f"save: unknown part {part!r}{suggest(str(part), PARTS)}")
    if "image" not in given:
        raise UsageError("save must hold image")
    return [part for part in PARTS if part in given]


def _count(options: dict[str, Any], key: str, *, least: int = 0) -> int:
    if options[key] is None or options[key] < least:
        raise UsageError(f"{key} must be at least {least}, got {options[key]}")
    return int(options[key])


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or _is_whole(value)
