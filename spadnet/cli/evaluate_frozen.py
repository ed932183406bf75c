"""Features of the models of ``spadnet evaluate``: which there are, and where they are kept."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch

from spadnet.cli.evaluate_tasks import GIVEN, SCRATCH, Given, Subject, untrained
from spadnet.cli.progress import progress
from spadnet.data.journal import hash_of
from spadnet.evaluate.duplicates import thumbnail_extractor
from spadnet.evaluate.extractors import (
    Encoder,
    control_extractor,
    model_extractor,
    num_parameters,
)
from spadnet.evaluate.features import (
    Change,
    Extractor,
    Features,
    compute_features,
    data_digest,
    read_features,
    write_features,
)
from spadnet.evaluate.planes import find_generalist, generalist_extractor, hand_made_extractor

logger = logging.getLogger(__name__)

THUMBNAIL = "thumbnail"


def build_extractors(
    given: Given, options: Mapping[str, Any], device: torch.device
) -> dict[str, Extractor]:
    """All that features are computed with, by the name in the tables."""
    seed = options["seeds"][0]
    model = cast(Encoder, given.model)
    scratch = untrained(model, seed=seed)
    arguments = [type(scratch).__name__, scratch.config(), seed]
    found = {
        GIVEN: model_extractor(model.to(device), given.digest),
        SCRATCH: model_extractor(scratch.to(device), hash_of(arguments)),
    }
    generalist = find_generalist(options["generalist"])
    if generalist is not None:
        size = options["generalist_size"]
        found[generalist.name] = generalist_extractor(generalist, size=size)
        logger.info(
            "generalist: %s, %d parameters", generalist.name, num_parameters(generalist.model)
        )
    found["hand-made"] = hand_made_extractor()
    found["control"] = control_extractor()
    return found


def features_of(
    subject: Subject,
    extractors: Mapping[str, Extractor],
    out: Path,
    *,
    batch_size: int,
    change: Change | None = None,
    note: object = None,
) -> dict[str, Features]:
    """Kept features of a task, or new ones where they are missing or damaged.

    Args:
        subject: The task.
        extractors: By name.
        out: Folder of the evaluation.
        batch_size: Images that pass an extractor together.
        change: What else is done to a prepared image.
        note: Plain values that say what ``change`` does.
    """
    data = data_digest(subject.task, subject.rule, note)
    wanted = {**extractors, THUMBNAIL: thumbnail_extractor()}
    files = {
        name: out / "features" / f"{hash_of([data, extractor.digest])}.safetensors"
        for name, extractor in wanted.items()
    }
    found = {name: read_features(file) for name, file in files.items()}
    missing = {name: wanted[name] for name, features in found.items() if features is None}
    if missing:
        with progress(f"features {subject.name}") as report:
            new = compute_features(
                missing,
                subject.task,
                rule=subject.rule,
                batch_size=batch_size,
                change=change,
                report=report,
            )
        for name, features in new.items():
            write_features(files[name], features)
            found[name] = features
    return {name: features for name, features in found.items() if features is not None}


def digests(subject: Subject, extractors: Mapping[str, Extractor]) -> dict[str, str]:
    """Hash of the data and of what computes the features, by name."""
    data = data_digest(subject.task, subject.rule)
    return {name: hash_of([data, extractor.digest]) for name, extractor in extractors.items()}


def check_writable(out: Path, names: Sequence[str]) -> None:
    """Make the folders of an evaluation.

    Raises:
        OSError: If they cannot be written; the error names the folder.
    """
    for name in names:
        (out / name).mkdir(parents=True, exist_ok=True)
        probe = out / name / ".writable"
        probe.write_bytes(b"")
        probe.unlink()
