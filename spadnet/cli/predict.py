"""``spadnet predict``: masks on the images' own grids, or classes and values, of new images."""

import csv
import io
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from spadnet.cli.progress import Report, progress
from spadnet.cli.trained import (
    choose_device,
    find_any,
    find_inputs,
    input_source,
    number,
    read_options,
    required,
    tell_faults,
)
from spadnet.cli.usage import UsageError
from spadnet.data.atomic import remove_parts, write_atomic
from spadnet.data.inputs import Item, is_table
from spadnet.data.io import Image, ImageError, read_frames, write_like
from spadnet.data.journal import Fault
from spadnet.data.task_images import read_channels
from spadnet.evaluate.prediction import (
    Predictor,
    build_predictor,
    check_names,
    predict_mask,
    predict_target,
)
from spadnet.inference.work_list import (
    frame_file,
    frame_keys,
    frame_signature,
    model_digest,
    num_done,
    output_files,
    signature,
    write_quarantine,
)
from spadnet.weights.hub import Loaded

logger = logging.getLogger(__name__)

_ENDING = ".nii.gz"
_SAVE_EVERY = 20
_TABLE = "predictions.csv"

Row = dict[str, str]


class Work(NamedTuple):
    """What to do.

    Attributes:
        items: Files.
        masks: Where their masks go; of a classifier the names are not used.
        signatures: Hashes of what predictions are made from.
    """

    items: Sequence[Item]
    masks: Sequence[Path]
    signatures: Sequence[str]


def run(argv: Sequence[str]) -> int:
    """Predict the images of an input."""
    options = read_options("predict", argv)
    if options is None:
        return 0
    source = required(options, "model", "FOLDER is missing: the folder of a fine-tuned model")
    out = Path(required(options, "out", "FOLDER is missing: a folder")).expanduser()
    if out.is_file():
        raise UsageError(f"out={out} is a file; give a folder")
    if options["overlap"] is not None:
        number(options, "overlap", low=0, high=1)
    flips = _flips(options["tta"])
    device = choose_device(options)
    given = _given_columns(options)
    loaded = find_any(source)
    predictor = _predictor(loaded, flips=flips, overlap=options["overlap"])
    items = find_inputs(options, columns=_columns(predictor, given), num_files=predictor.num_files)
    predictor.model.to(device)
    settings = [model_digest(loaded.folder), predictor.flips, options["overlap"]]
    named = [item._replace(key=item.key.removesuffix(_ENDING)) for item in items]
    masks = output_files(named, out, ending=_ENDING)
    _refuse_inputs(items, masks, out)
    work = Work(items, masks, [signature(item, settings) for item in items])
    remove_parts(out)
    with progress("predict") as report:
        rows, faults = _work_through(predictor, work, out / _TABLE, report)
    write_quarantine(out / "quarantine.jsonl", faults)
    if not rows:
        raise ImageError(
            faults[0].reason
            if len(faults) == 1
            else f"none of the {len(items)} files can be used; {out / 'quarantine.jsonl'} says why"
        )
    tell_faults(faults, out / "quarantine.jsonl")
    logger.info("predictions in %s", out / _TABLE)
    return 0


def _given_columns(options: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Columns with an image's files that the user names."""
    source, given = Path(input_source(options)).expanduser(), options["image_columns"]
    if given is None:
        return None
    if not isinstance(given, list) or not given or not all(isinstance(name, str) for name in given):
        raise UsageError(f"image_columns must be names such as [in_phase,out_phase], got {given}")
    if not is_table(source):
        raise UsageError(f"image_columns names columns of a table; in={source} is none")
    return tuple(given)


def _columns(predictor: Predictor, given: tuple[str, ...] | None) -> list[tuple[str, ...]]:
    """Choices of columns with an image's files: the user's, or the training's, or ``path``."""
    if given is None:
        known = predictor.image_columns
        return [known, ("path",)] if known else [("path",)]
    wanted = predictor.num_files if predictor.num_files > 1 else predictor.rule.in_chans
    if len(given) not in (1, wanted):
        raise UsageError(
            f"image_columns names {len(given)} files of an image, the model takes {wanted}"
        )
    return [given]


def _refuse_inputs(items: Sequence[Item], masks: Sequence[Path], out: Path) -> None:
    """Refuse to write over an image, or beside channels, where a mask would be the next image."""
    inputs = {path.resolve() for item in items for path in item.paths}
    for item, mask in zip(items, masks, strict=True):
        if item.other_channels and mask.parent.resolve() == item.path.parent.resolve():
            raise UsageError(f"out={out} holds channels of {item.key}; choose another folder")
        if mask.resolve() in inputs:
            raise UsageError(f"out={out}: {mask.resolve()} is an input; choose another folder")


def _flips(choice: Any) -> tuple[int, ...] | None:
    """Axes to mirror; None leaves them to the model's folder."""
    if choice is None or isinstance(choice, bool):
        return {None: None, True: (0, 1, 2), False: ()}[choice]
    if not isinstance(choice, list) or not all(axis in (0, 1, 2) for axis in choice):
        raise UsageError(f"tta must be true, false or a list of the axes 0, 1, 2, got {choice}")
    return tuple(choice)


def _predictor(
    loaded: Loaded, *, flips: tuple[int, ...] | None, overlap: float | None
) -> Predictor:
    training = loaded.config["training"]
    if not isinstance(training.get("task"), dict):
        raise ValueError(
            f"{loaded.folder}: holds a {type(loaded.model).__name__} that was not fine-tuned; "
            "spadnet finetune makes one that predicts"
        )
    try:
        predictor = build_predictor(
            loaded.model, training, stride=loaded.contract.stride, flips=flips, overlap=overlap
        )
        check_names(predictor.classes, kind=predictor.kind)
        return predictor
    except ValueError as error:
        raise ValueError(f"{loaded.folder}: {error}") from error


def _work_through(
    predictor: Predictor, work: Work, table: Path, report: Report
) -> tuple[dict[str, Row], list[Fault]]:
    """Predict what is not there yet; what is done is kept whatever ends this."""
    known = _read_table(table)
    rows: dict[str, Row] = {}
    todo: list[tuple[Item, Path, str]] = []
    is_map = predictor.window is not None
    for item, mask, made_from in zip(*work, strict=True):
        count = _num_done(item, mask if is_map else None, made_from, known)
        rows.update((key, known[key]) for key in frame_keys(item.key, count) if count)
        if not count:
            todo.append((item, mask, made_from))
    kept, done = len(rows), len(work.items) - len(todo)
    faults: list[Fault] = []
    report(done, len(work.items), 0)
    try:
        for item, mask, made_from in todo:
            try:
                frames = _read(item)
            except ImageError as error:
                faults.append(Fault(item.key, str(error)))
                frames = []
            keys = frame_keys(item.key, len(frames))
            for index, (key, image) in enumerate(zip(keys, frames, strict=True)):
                target = frame_file(mask, index, len(frames), ending=_ENDING)
                try:
                    values = _one(predictor, image, target, table.parent)
                except ImageError as error:
                    faults.append(Fault(key, str(error)))
                    continue
                made = frame_signature(made_from, len(frames))
                rows[key] = {"key": key, **values, "signature": made}
            done += 1
            report(done, len(work.items), len(faults))
            if done % _SAVE_EVERY == 0:
                _write_table(table, rows)
    finally:
        if rows and rows != known:
            _write_table(table, rows)
    logger.info("%d images predicted (%d were there already)", len(rows) - kept, kept)
    return rows, faults


def _read(item: Item) -> list[Image]:
    """An item's images; of several files one, with the channels of all."""
    if item.other_channels:
        return [read_channels(item.paths, spacing=item.spacing)]
    return read_frames(item.path, spacing=item.spacing, files=item.files)


def _num_done(item: Item, mask: Path | None, made_from: str, known: dict[str, Row]) -> int:
    """Images of an item that an earlier run predicted and that are still there, if all are."""

    def found(index: int, count: int) -> str | None:
        row = known.get(frame_keys(item.key, count)[index])
        if row is None or (
            mask is not None and not frame_file(mask, index, count, ending=_ENDING).is_file()
        ):
            return None
        return row["signature"]

    return num_done(made_from, found)


def _one(predictor: Predictor, image: Image, file: Path, folder: Path) -> Row:
    """Predict one image; of a segmentor the mask is written."""
    names = predictor.classes
    if predictor.window is None:
        values = predict_target(predictor, image)
        row = {name: f"{value:.6g}" for name, value in zip(names, values, strict=True)}
        if predictor.kind in ("classification", "ordinal"):
            return {"prediction": names[int(np.argmax(values))], **row}
        if predictor.kind == "multi_label":
            there = [name for name, value in zip(names, values, strict=True) if value > 0.5]
            return {"prediction": ";".join(there), **row}
        return row
    mask = predict_mask(predictor, image)
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        write_like(mask, image, file)
    except ImageError as error:  # a full disk is no fault of the image
        raise ValueError(str(error)) from error
    counts = np.bincount(mask.reshape(-1), minlength=len(names))
    voxels = {f"voxels_{name}": str(counts[n]) for n, name in enumerate(names) if n}
    return {"mask": file.relative_to(folder).as_posix(), **voxels}


def _write_table(file: Path, rows: dict[str, Row]) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, next(iter(rows.values())), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows[key] for key in sorted(rows))
    write_atomic(file, text.getvalue().encode("utf-8", "surrogateescape"))


def _read_table(file: Path) -> dict[str, Row]:
    """Predictions of an earlier run; a damaged table counts for nothing."""
    try:
        lines = list(csv.DictReader(file.read_text(encoding="utf-8").splitlines()))
        return {row["key"]: row for row in lines if row["signature"]}
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        return {}
