"""``spadnet preprocess``: from image files to a store that training reads crops from."""

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spadnet.cli.configure import configure
from spadnet.cli.progress import progress
from spadnet.cli.training import plain
from spadnet.cli.usage import UsageError
from spadnet.data import catalogue
from spadnet.data.atomic import write_atomic
from spadnet.data.fingerprint import as_text, fingerprint
from spadnet.data.fingerprint_page import render, thumbnails
from spadnet.data.inputs import Item, list_items, list_recipe_items, split_series
from spadnet.data.prepare_folder import QUARANTINE, Prepared, prepare_store
from spadnet.data.prepare_item import Settings
from spadnet.data.recipes import format_recipes, load_recipe
from spadnet.data.verify import find_damage, write_sums

logger = logging.getLogger(__name__)

TEXT, PAGE = "fingerprint.txt", "fingerprint.html"
_SHOWN = 10  # quarantined files named in the terminal


def run(argv: Sequence[str]) -> int:
    """Make or check a store, or list the recipes."""
    if list(argv) == ["recipes"]:
        sys.stdout.write(format_recipes())
        return 0
    config = configure("preprocess", argv)
    if config is None:
        return 0
    options = plain(config)
    if options["out"] is None:
        raise UsageError("out=FOLDER is missing: the folder of the store")
    out = Path(str(options["out"])).expanduser()
    workers = _num_workers(options["workers"])
    if options["verify"]:
        return _verify(out, threads=workers)
    if options["in"] is None:
        raise UsageError("in=FOLDER is missing: a folder, a glob pattern or a table of images")
    if Path(str(options["in"])).expanduser().resolve() == out.resolve():
        raise UsageError(f"out={out} is the folder of the images; the store needs one of its own")
    settings, time_limit = _settings(options), _time_limit(options["time_limit"])
    if workers == 0 and time_limit is not None:
        logger.info("workers=0: no time limit per file; it takes a process of its own, workers=1")
    items = _items(options)
    with progress("preprocess") as report:
        prepared = prepare_store(
            items, out, settings=settings, workers=workers, time_limit=time_limit, report=report
        )
    _describe(out, prepared, pictures=options["contact_sheet"])
    _tell(out, prepared)
    return 0


def _items(options: dict[str, Any]) -> list[Item]:
    """What to prepare: all images of the input, or those that a recipe knows."""
    source, dataset = str(options["in"]), options["dataset"]
    if options["recipe"] is None:
        return split_series(list_items(source, dataset=dataset))
    recipe = load_recipe(str(options["recipe"]))
    items = split_series(list_recipe_items(recipe, source, dataset=dataset))
    logger.info("%s: %d files; licence: %s", recipe.name, len(items), recipe.licence or "not known")
    if recipe.home is not None:
        logger.info("see %s", recipe.home)
    return items


def _time_limit(given: float | None) -> float | None:
    if given is not None and not (isinstance(given, int | float) and given > 0):
        raise UsageError(f"time_limit must be positive seconds or null, got {given}")
    return given


def _settings(options: dict[str, Any]) -> Settings:
    percentiles, bound = options["percentiles"], options["max_in_plane"]
    numbers = len(percentiles) == 2 and all(isinstance(p, int | float) for p in percentiles)
    if not numbers or not 0 <= percentiles[0] < percentiles[1] <= 100:
        raise UsageError(f"percentiles must be two rising numbers in [0, 100], got {percentiles}")
    if bound is not None and bound < 2:
        raise UsageError(f"max_in_plane must be at least 2 or null, got {bound}")
    low, high = (float(percent) for percent in percentiles)
    return Settings(crop=options["crop"], percentiles=(low, high), max_in_plane=bound)


def _num_workers(given: int | None) -> int:
    if given is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    if not isinstance(given, int) or given < 0:
        raise UsageError(f"workers must be a whole number that is not negative, got {given}")
    return given


def _describe(out: Path, prepared: Prepared, *, pictures: int) -> None:
    """Write the fingerprint, and the checksums last of all."""
    found = fingerprint(prepared.records, [fault.reason for fault in prepared.faults])
    sheet = thumbnails(out, prepared.records, count=pictures)
    page = render(found, sheet, title="Fingerprint of the store")
    write_atomic(out / TEXT, as_text(found).encode())
    write_atomic(out / PAGE, page.encode("utf-8", "xmlcharrefreplace"))
    write_sums(out, [catalogue.FILE, QUARANTINE, TEXT, PAGE])


def _tell(out: Path, prepared: Prepared) -> None:
    sys.stdout.write((out / TEXT).read_text(encoding="utf-8"))
    for fault in prepared.faults[:_SHOWN]:
        logger.warning("quarantined: %s: %s", fault.file, fault.reason)
    if len(prepared.faults) > _SHOWN:
        logger.warning(
            "quarantined: %d more, see %s", len(prepared.faults) - _SHOWN, out / QUARANTINE
        )
    logger.info("store written to %s (%d files were there already)", out, prepared.kept)
    logger.info("see %s", out / PAGE)


def _verify(out: Path, *, threads: int) -> int:
    with progress("verify") as report:
        damage = find_damage(out, threads=threads, report=report)
    for fault in damage:
        sys.stdout.write(f"BAD {fault.file}: {fault.reason}\n")
    if damage:
        logger.error("%d bad files; delete them and start the same preprocess again", len(damage))
        return 1
    sys.stdout.write(f"ok   {out}: every checksum is right\n")
    return 0
