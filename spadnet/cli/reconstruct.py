"""``spadnet reconstruct``: images through a tokenizer, on their own grids, and how good that is."""

import csv
import io
import logging
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from spadnet.cli.progress import Report, progress
from spadnet.cli.trained import (
    choose_device,
    find_inputs,
    find_loaded,
    number,
    read_options,
    required,
    tell_faults,
)
from spadnet.cli.usage import UsageError
from spadnet.data.atomic import write_atomic
from spadnet.data.inputs import Item, is_table
from spadnet.data.io import (
    PICTURE_SUFFIXES,
    WRITABLE_SUFFIXES,
    Image,
    ImageError,
    read_frames,
    write_like,
)
from spadnet.data.journal import Fault
from spadnet.evaluate.image_quality import image_quality
from spadnet.inference.prepared import restore
from spadnet.inference.reconstruct import reconstruct
from spadnet.inference.trained_range import RangeWatch, TrainedRange
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
from spadnet.models.tokenizer import Tokenizer
from spadnet.weights.contract import InputContract

logger = logging.getLogger(__name__)

_ENDINGS = sorted(WRITABLE_SUFFIXES, key=len, reverse=True)


class Figures(NamedTuple):
    """One line of the table.

    Attributes:
        key: Name of the image.
        degree: Degree of anisotropy it was seen at.
        psnr: In dB, of intensities in [0, 1] within the foreground's box.
        ssim: Structural similarity of the same.
        output: File of the reconstruction, seen from the table.
        signature: Hash of what it was made from.
    """

    key: str
    degree: int
    psnr: float
    ssim: float
    output: str
    signature: str


class Work(NamedTuple):
    """How to do it."""

    tokenizer: Tokenizer
    contract: InputContract
    watch: RangeWatch
    options: dict[str, Any]


def run(argv: Sequence[str]) -> int:
    """Reconstruct the images of an input."""
    options = read_options("reconstruct", argv)
    if options is None:
        return 0
    source = required(options, "tokenizer", "FOLDER is missing: the folder of a trained tokenizer")
    number(options, "overlap", low=0, high=1)
    number(options, "batch_size", low=1, high=1 << 20)
    window = options["window"]
    if len(window) != 3 or not all(isinstance(n, int) and n > 0 for n in window):
        raise UsageError(f"window must be three positive numbers of tokens, got {window}")
    device = choose_device(options)
    out = Path(required(options, "out", "FOLDER is missing: a folder")).expanduser()
    items = find_inputs(options)
    files, table, quarantine = _outputs(out, items, Path(str(options["in"])).expanduser())
    loaded = find_loaded(source, expect=Tokenizer)
    tokenizer = loaded.model.to(device)
    assert isinstance(tokenizer, Tokenizer)
    watch = RangeWatch(TrainedRange.of(loaded.config["training"]))
    work = Work(tokenizer, loaded.contract, watch, options)
    settings = [model_digest(loaded.folder), list(window), options["overlap"]]
    signatures = [signature(item, settings) for item in items]
    known = _read_table(table)
    with progress("reconstruct") as report:
        rows, faults = _work_through(work, items, files, signatures, known, table, report)
    write_quarantine(quarantine, faults)
    if not rows:
        raise ImageError(
            faults[0].reason
            if len(faults) == 1
            else f"none of the {len(items)} files can be used; {quarantine} says why"
        )
    tell_faults(faults, quarantine)
    psnr, ssim = (math.fsum(v) / len(rows) for v in zip(*((r.psnr, r.ssim) for r in rows)))  # noqa: B905
    sys.stdout.write(f"mean of {len(rows)} images: PSNR {psnr:.2f} dB, SSIM {ssim:.4f}\n")
    logger.info("figures of each image in %s", table)
    return 0


def _outputs(out: Path, items: Sequence[Item], source: Path) -> tuple[list[Path], Path, Path]:
    """Files of the reconstructions, of the figures, and of what cannot be used."""
    is_one = source.is_file() and not is_table(source)
    if is_one and out.name.lower().endswith(WRITABLE_SUFFIXES) and not out.is_dir():
        stem = out.name.removesuffix(".gz").rpartition(".")[0]
        if out.resolve() == source.resolve():
            raise UsageError(f"out={out} is the input; choose another name")
        return [out], out.with_name(f"{stem}.csv"), out.with_name(f"{stem}.quarantine.jsonl")
    if out.is_file():
        raise UsageError(f"out={out} is a file; give a folder")
    pictures = [_is_picture(item) for item in items]
    named = [
        item._replace(key=_without(item.key, ".png" if picture else ".nii.gz"))
        for item, picture in zip(items, pictures, strict=True)
    ]
    files = [
        file.with_name(file.name + (".png" if picture else ".nii.gz"))
        for file, picture in zip(output_files(named, out, ending=""), pictures, strict=True)
    ]
    sources = {item.path.resolve() for item in items}
    if overwritten := [file for file in files if file.resolve() in sources]:
        raise UsageError(f"out={out}: {overwritten[0]} is an input; choose another folder")
    return files, out / "reconstruction.csv", out / "quarantine.jsonl"


def _is_picture(item: Item) -> bool:
    return item.spacing is None and item.path.suffix.lower() in PICTURE_SUFFIXES


def _without(key: str, ending: str) -> str:
    return key[: -len(ending)] if key.lower().endswith(ending) else key


def _work_through(
    work: Work,
    items: Sequence[Item],
    files: Sequence[Path],
    signatures: Sequence[str],
    known: dict[str, Figures],
    table: Path,
    report: Report,
) -> tuple[list[Figures], list[Fault]]:
    """Reconstruct what is not there yet; the table is written after each image."""
    rows: dict[str, Figures] = {}
    todo: list[tuple[Item, Path, str]] = []
    for item, file, made_from in zip(items, files, signatures, strict=True):
        count = _num_done(item, file, made_from, known)
        rows.update((key, known[key]) for key in frame_keys(item.key, count))
        if not count:
            todo.append((item, file, made_from))
    faults: list[Fault] = []
    kept, done = len(rows), len(items) - len(todo)
    report(done, len(items), 0)
    if set(known) - set(rows) and rows:
        _write_table(table, rows)
    for item, file, made_from in todo:
        try:
            frames = read_frames(item.path, spacing=item.spacing, files=item.files)
        except ImageError as error:
            faults.append(Fault(item.key, str(error)))
            frames = []
        for index, (key, image) in enumerate(
            zip(frame_keys(item.key, len(frames)), frames, strict=True)
        ):
            target = frame_file(file, index, len(frames), ending=_ending(file))
            try:
                made = _one(work, image, target)
            except ImageError as error:
                faults.append(Fault(key, str(error)))
                continue
            output = target.relative_to(table.parent).as_posix()
            rows[key] = Figures(key, *made, output, frame_signature(made_from, len(frames)))
            _write_table(table, rows)
        done += 1
        report(done, len(items), len(faults))
    logger.info("%d images reconstructed (%d were there already)", len(rows) - kept, kept)
    return [rows[key] for key in sorted(rows)], faults


def _num_done(item: Item, file: Path, made_from: str, known: dict[str, Figures]) -> int:
    """Images of an item that an earlier run made and that are still there, if all are; or 0."""

    def found(index: int, count: int) -> str | None:
        row = known.get(frame_keys(item.key, count)[index])
        is_there = frame_file(file, index, count, ending=_ending(file)).is_file()
        return row.signature if row is not None and is_there else None

    return num_done(made_from, found)


def _ending(file: Path) -> str:
    return next(ending for ending in _ENDINGS if file.name.lower().endswith(ending))


def _one(work: Work, image: Image, file: Path) -> tuple[int, float, float]:
    """Reconstruct an image and write it; gives its degree, PSNR and SSIM."""
    options = work.options
    made = reconstruct(
        work.tokenizer,
        image,
        contract=work.contract,
        window=options["window"],
        overlap=options["overlap"],
        batch_size=options["batch_size"],
    )
    work.watch.look_at(made.prepared.image)
    quality = image_quality(made.values, torch.from_numpy(made.prepared.image.array), made.degree)
    is_png = file.suffix.lower() in PICTURE_SUFFIXES
    if is_png and image.array.dtype not in (np.uint8, np.uint16):  # PNG has no other types
        image = image._replace(array=image.array.astype(np.uint8))
        made = made._replace(
            prepared=made.prepared._replace(window=made.prepared.window._replace(low=0, high=255))
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    values = restore(made.values.numpy(), made.prepared, image)
    try:
        write_like(values, image, file)
    except ImageError as error:  # a full disk is no fault of the image
        raise ValueError(str(error)) from error
    return made.degree, quality.psnr, quality.ssim


def _write_table(file: Path, rows: dict[str, Figures]) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Figures._fields)
    for key in sorted(rows):
        row = rows[key]
        writer.writerow(row._replace(psnr=round(row.psnr, 4), ssim=round(row.ssim, 6)))
    write_atomic(file, text.getvalue().encode("utf-8", "surrogateescape"))


def _read_table(file: Path) -> dict[str, Figures]:
    """Figures of an earlier run; a damaged table counts for nothing."""
    try:
        lines = list(csv.DictReader(file.read_text(encoding="utf-8").splitlines()))
        rows = [
            Figures(
                row["key"],
                int(row["degree"]),
                float(row["psnr"]),
                float(row["ssim"]),
                row["output"],
                row["signature"],
            )
            for row in lines
        ]
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        return {}
    return {row.key: row for row in rows}
