"""``spadnet embed``: features of image files by a trained encoder."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spadnet.cli.progress import progress
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
from spadnet.data.inputs import Item, is_table
from spadnet.inference.embed import FilePerImage, OneTable, Target, embed
from spadnet.inference.embedding_files import FORMATS, pyarrow
from spadnet.inference.encoder import Encoder
from spadnet.inference.freeze import can_freeze, freeze
from spadnet.inference.trained_range import TrainedRange
from spadnet.inference.work_list import model_digest
from spadnet.models.vit import SpadViT
from spadnet.near_names import suggest

logger = logging.getLogger(__name__)

_MANY = 1 << 20


def run(argv: Sequence[str]) -> int:
    """Embed the images of an input."""
    options = read_options("embed", argv)
    if options is None:
        return 0
    model = required(options, "model", "FOLDER is missing: the folder of a trained encoder")
    max_tokens = int(number(options, "max_tokens", low=1, high=_MANY))
    batch_size = int(number(options, "batch_size", low=1, high=_MANY))
    device = choose_device(options)
    format = _format(options)
    items = find_inputs(options)
    target = _target(options, items, format)
    loaded = find_loaded(model, expect=SpadViT)
    vit = loaded.model.to(device)
    assert isinstance(vit, SpadViT)
    if can_freeze(vit):
        vit = freeze(vit)
    trained = TrainedRange.of(loaded.config["training"])
    encoder = Encoder(vit, contract=loaded.contract, max_tokens=max_tokens, trained=trained)
    settings = [model_digest(loaded.folder), max_tokens]
    with progress("embed") as report:
        done = embed(
            encoder, items, target, settings=settings, batch_size=batch_size, report=report
        )
    tell_faults(done.faults, done.quarantine)
    logger.info(
        "%d images embedded to %s (%d were there already)", done.done, options["out"], done.kept
    )
    return 0


def _format(options: dict[str, Any]) -> str:
    """The format asked for, or that of the output's ending, or npz."""
    ending = Path(required(options, "out", "FOLDER is missing: a folder or a file")).suffix[1:]
    format = options["format"]
    if format is None:
        format = ending if ending in FORMATS else "npz"
    if format not in FORMATS:
        raise UsageError(f"unknown format {format!r}{suggest(str(format), FORMATS)}")
    if format == "parquet":
        pyarrow()
        if ending != "parquet":
            raise UsageError("format=parquet writes one table; give it a name: out=NAME.parquet")
    if ending in FORMATS and ending != format:
        raise UsageError(f"out={options['out']} and format={format} disagree")
    return str(format)


def _target(options: dict[str, Any], items: Sequence[Item], format: str) -> Target:
    """A folder of files, a table, or for one image its one file."""
    out, source = Path(options["out"]).expanduser(), Path(str(options["in"])).expanduser()
    if out.suffix[1:] != format:
        if out.is_file():
            raise UsageError(f"out={out} is a file; give a folder, or a name ending in .{format}")
        return FilePerImage.below(items, out, format=format)
    if out.is_dir():
        raise UsageError(f"out={out} is a folder; a name ending in .{format} is that of a file")
    if format != "parquet" and source.is_file() and not is_table(source):
        quarantine = out.with_name(f"{out.stem}.quarantine.jsonl")
        return FilePerImage([out], quarantine=quarantine)
    return OneTable(items, out)
