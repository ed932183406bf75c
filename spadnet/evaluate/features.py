"""Frozen features of a task's images: computed in one pass for all models, and kept.

One feature stands for a whole image, or, of label maps, for each cell of a grid of patches.
"""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from spadnet.data.atomic import write_atomic
from spadnet.data.image import Image, ImageError
from spadnet.data.journal import hash_of
from spadnet.data.task_images import CaseReader, Preparation, prepare_view
from spadnet.data.tasks import SPLITS, Case, TaskData
from spadnet.spacing import Spacing, required_multiple

logger = logging.getLogger(__name__)

PATCH = 16
"""In-plane voxels of a cell of the grid that features of label maps lie on."""


Change = Callable[[Tensor, Spacing, str], Tensor]
"""Takes a prepared image [C, D, H, W], its spacing, and the name of the case."""


class Views(NamedTuple):
    """Images of one size and degree.

    Attributes:
        image: Prepared, in [0, 1], [B, C, D, H, W], float32.
        degree: Anisotropy.
        grid: Cells (z, y, x) of patches that cover an image; the last ones may be cut.
        raw: The same images as read.
    """

    image: Tensor
    degree: int
    grid: tuple[int, int, int]
    raw: Sequence[Image]


class Extractor(NamedTuple):
    """What turns images into features.

    Attributes:
        digest: Hash of all that decides the features.
        pooled: Features of whole images, [B, C].
        tokens: Features of the cells of the grid, [B, d, h, w, C].
    """

    digest: str
    pooled: Callable[[Views], Tensor]
    tokens: Callable[[Views], Tensor]


class Features(NamedTuple):
    """Features of a task by one extractor.

    Attributes:
        values: By split, [N, C], or of the cells of all images one after the other, [T, C].
        grids: By split, cells (z, y, x) of each image, [N, 3]; ones where a feature is an image's.
        sizes: By split, voxels (z, y, x) of each prepared image, [N, 3].
        patches: By split, voxels (z, y, x) of a cell of each image, [N, 3].
        seconds: What the extractor took.
    """

    values: Mapping[str, Tensor]
    grids: Mapping[str, Tensor]
    sizes: Mapping[str, Tensor]
    patches: Mapping[str, Tensor]
    seconds: float


class _Seen(NamedTuple):
    place: int
    image: Tensor
    degree: int
    raw: Image


def data_digest(task: TaskData, rule: Preparation, *more: object) -> str:
    """Hash of a task's cases, of their files' states, and of what is done to the images.

    Args:
        task: The task.
        rule: What is done to the images.
        *more: Plain values that say what else is done to them.
    """
    states: dict[str, tuple[int, int]] = {}
    for case in task.cases:
        targets = (case.target,) if isinstance(case.target, Path) else ()
        for path in (*case.images, *targets):
            if str(path) not in states:
                found = path.stat()
                states[str(path)] = found.st_size, found.st_mtime_ns
    cases = [
        [case.key, list(map(str, case.images)), str(case.target), case.split, str(case.row)]
        for case in task.cases
    ]
    return hash_of(
        [task.kind, list(task.classes), cases, sorted(states.items()), list(rule), *more]
    )


@torch.no_grad()
def compute_features(
    extractors: Mapping[str, Extractor],
    task: TaskData,
    *,
    rule: Preparation,
    batch_size: int = 32,
    change: Change | None = None,
    report: Callable[[int, int, int], None] = lambda *_: None,
) -> dict[str, Features]:
    """Read each image once and run all extractors on it.

    Args:
        extractors: By name.
        task: All of its splits are read.
        rule: What is done to the images.
        batch_size: Images that pass an extractor together.
        change: What else is done to a prepared image.
        report: Told the images done, all images, and 0.

    Raises:
        ImageError: If images cannot be used; the message tells of all.
    """
    is_map = task.kind == "segmentation"
    seconds = dict.fromkeys(extractors, 0.0)
    values: dict[str, dict[str, Tensor]] = {name: {} for name in extractors}
    grids: dict[str, Tensor] = {}
    sizes: dict[str, Tensor] = {}
    patches: dict[str, Tensor] = {}
    done = 0
    for split in SPLITS:
        cases = task.of(split)
        found: dict[str, dict[int, Tensor]] = {name: {} for name in extractors}
        grid, size, patch = (torch.ones(len(cases), 3, dtype=torch.int32) for _ in range(3))
        for part in _batches(read_views(cases, rule, task, change), batch_size):
            first = part[0]
            own = first.image.shape[1:]
            cell = required_multiple(first.degree, stride=PATCH)
            views = Views(
                torch.stack([seen.image for seen in part]),
                first.degree,
                _cells(own, cell),
                [seen.raw for seen in part],
            )
            rows = [seen.place for seen in part]
            size[rows], patch[rows] = torch.tensor(own).int(), torch.tensor(cell).int()
            if is_map:
                grid[rows] = torch.tensor(views.grid).int()
            for name, extractor in extractors.items():
                begin = time.perf_counter()
                features = extractor.tokens(views) if is_map else extractor.pooled(views)
                seconds[name] += time.perf_counter() - begin
                flat = features.reshape(len(part), -1, features.shape[-1]).cpu()
                flat = flat.half() if is_map else flat.float()
                found[name] |= dict(zip(rows, flat, strict=True))
            done += len(part)
            report(done, len(task.cases), 0)
        grids[split], sizes[split], patches[split] = grid, size, patch
        for name, by_index in found.items():
            if by_index:
                values[name][split] = torch.cat([by_index[i] for i in range(len(cases))])
    return {
        name: Features(values[name], grids, sizes, patches, seconds[name]) for name in extractors
    }


def read_views(
    cases: Sequence[Case], rule: Preparation, task: TaskData, change: Change | None
) -> Iterator[_Seen]:
    """Read and prepare cases without their targets; faults are told at the end, of all."""
    reader = CaseReader(rule, num_classes=len(task.classes))
    faults = []
    for index, case in enumerate(cases):
        try:
            raw = reader.image(case)
            name = raw.source if case.row is None else f"{raw.source}[{case.key}]"
            view = prepare_view(raw._replace(source=name), rule)
        except ImageError as error:
            faults.append(str(error))
            continue
        image = torch.from_numpy(view.image.array).float()
        if change is not None:
            image = change(image, view.image.spacing, case.key)
        yield _Seen(index, image, view.degree, raw)
    if faults:
        raise ImageError("; ".join(faults))


def _batches(seen: Iterable[_Seen], batch_size: int) -> Iterator[list[_Seen]]:
    waiting: dict[tuple[int, ...], list[_Seen]] = {}
    for one in seen:
        group = waiting.setdefault((one.degree, *one.image.shape), [])
        group.append(one)
        if len(group) == batch_size:
            yield waiting.pop((one.degree, *one.image.shape))
    yield from waiting.values()


def _cells(size: Sequence[int], cell: Sequence[int]) -> tuple[int, int, int]:
    z, y, x = (-(-n // step) for n, step in zip(size, cell, strict=True))
    return z, y, x


# --- kept features ---


def write_features(path: Path, features: Features) -> None:
    """Keep features; the file holds a hash of its own content."""
    tensors = {
        f"{kind}.{split}": value.contiguous()
        for kind in ("values", "grids", "sizes", "patches")
        for split, value in getattr(features, kind).items()
    }
    note = json.dumps({"seconds": features.seconds, "sha256": _content(tensors)})
    write_atomic(path, save(tensors, metadata={"spadnet": note}))


def read_features(path: Path) -> Features | None:
    """Read kept features; None where there are none, or, with a warning, where they are damaged."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            note = json.loads((file.metadata() or {})["spadnet"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if note["sha256"] != _content(tensors):
            raise ValueError("its content was changed")
        parts: dict[str, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            kind, _, split = name.partition(".")
            parts.setdefault(kind, {})[split] = value
        return Features(**parts, seconds=float(note["seconds"]))
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        logger.warning("%s: damaged (%s); computed again", path, error)
        return None


def _content(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest()
