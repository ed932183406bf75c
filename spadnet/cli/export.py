"""``spadnet export``: a trained model for one spacing, as a file that other programs run."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from spadnet.cli.trained import find_any, read_options, required
from spadnet.cli.usage import UsageError
from spadnet.inference.export import ENDINGS, Format, export_model
from spadnet.inference.monai_bundle import export_bundle
from spadnet.near_names import suggest
from spadnet.spacing import MAX_DEGREE, Spacing
from spadnet.weights.hub import Loaded

logger = logging.getLogger(__name__)

BUNDLE = "monai_bundle"


def run(argv: Sequence[str]) -> int:
    """Export a model and say how near the file is to it."""
    options = read_options("export", argv)
    if options is None:
        return 0
    source = required(options, "model", "FOLDER is missing: the folder of a trained model")
    file = Path(required(options, "out", "FILE is missing: NAME.onnx or NAME.pt2")).expanduser()
    degree = _degree(options)
    if options["format"] == BUNDLE:
        export_bundle(_find(source, degree), file, degree=degree)
        logger.info("%s: MONAI bundle for degree %d", file, degree)
        return 0
    format = _format(options["format"], file)
    if file.is_dir():
        raise UsageError(f"out={file} is a folder; give a file")
    loaded = _find(source, degree)
    config = loaded.config
    facts = {
        "contract": loaded.contract._asdict(),
        "model": {key: config["model"][key] for key in ("class", "name")},
        "spacing": options["spacing"],
        **{key: config[key] for key in ("training", "licence", "versions")},
    }
    error = export_model(loaded.model, file, degree=degree, format=format, facts=facts)  # type: ignore[arg-type]
    size = file.stat().st_size / 1e6
    logger.info("%s (%.1f MB, degree %d): within %.1e of the model", file, size, degree, error)
    return 0


def _find(source: str, degree: int) -> Loaded:
    """Load what is exported; refused where a file for this degree would compute something else."""
    loaded = find_any(source)
    training = loaded.config["training"]
    task = training.get("task", {}) if isinstance(training, dict) else {}
    if task.get("thin_logits") and 0 < degree < MAX_DEGREE:
        raise ValueError(
            f"{loaded.folder}: has learned to decode thin slices from thick ones, which a file for "
            f"degree {degree} cannot; export degree 0, or use spadnet predict"
        )
    return loaded


def _format(given: str | None, file: Path) -> Format:
    """The format asked for, or that of the file's ending."""
    if given is not None and given not in ENDINGS:
        raise UsageError(f"unknown format {given!r}{suggest(str(given), [*ENDINGS, BUNDLE])}")
    for format, ending in ENDINGS.items():
        if given in (format, None) and file.suffix == ending:
            return format
    wanted = ENDINGS[given] if given in ENDINGS else " or ".join(ENDINGS.values())
    raise UsageError(f"out={file} must end in {wanted}")


def _degree(options: dict[str, Any]) -> int:
    degree, spacing = options["degree"], options["spacing"]
    if (degree is None) == (spacing is None):
        raise UsageError("give either degree=N or spacing=[z,y,x] in mm; a 2D image has degree 5")
    if spacing is None:
        if not isinstance(degree, int) or not 0 <= degree <= MAX_DEGREE:
            raise UsageError(f"degree must be a whole number from 0 to {MAX_DEGREE}, got {degree}")
        return degree
    values = spacing if isinstance(spacing, list) else [spacing]
    if len(values) != 3 or not all(isinstance(mm, int | float) for mm in values):
        raise UsageError(f"spacing must be three numbers [z,y,x] in mm, got {spacing}")
    try:
        return Spacing(*map(float, values)).degree()
    except ValueError as error:
        raise UsageError(str(error)) from error
