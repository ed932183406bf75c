"""What a store holds, in numbers and words."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from spadnet.data.catalogue import Record
from spadnet.spacing import Spacing

UNKNOWN = "unknown"
_NUM_COLUMNS = 12  # of a histogram


class Distribution(NamedTuple):
    """How a number is spread over the images.

    Attributes:
        name: What it is, with its unit.
        low: Smallest.
        median: Of the images.
        high: Largest.
        edges: Borders of the columns of a histogram; evenly spaced in the logarithm.
        counts: Images per column.
    """

    name: str
    low: float
    median: float
    high: float
    edges: list[float]
    counts: list[int]


class Fingerprint(NamedTuple):
    """What a store holds.

    Attributes:
        num_images: Images; the frames of a series count.
        num_quarantined: Files and frames that could not be used.
        num_bytes: Disk use of the images.
        num_float16_bytes: What they would take as float16 without compression.
        datasets: Images per data set.
        modalities: Images per modality.
        degrees: Images per degree of anisotropy.
        channels: Images per number of channels.
        dtypes: Images per stored type.
        distributions: Of shapes and spacings.
        reasons: Quarantined files per reason, the commonest first.
    """

    num_images: int
    num_quarantined: int
    num_bytes: int
    num_float16_bytes: int
    datasets: dict[str, int]
    modalities: dict[str, int]
    degrees: dict[str, int]
    channels: dict[str, int]
    dtypes: dict[str, int]
    distributions: list[Distribution]
    reasons: dict[str, int]


def fingerprint(records: Sequence[Record], reasons: Sequence[str]) -> Fingerprint:
    """Count what a store holds.

    Args:
        records: Its catalogue.
        reasons: Why files were quarantined, one per file.
    """
    solid = [record for record in records if not Spacing(*record.spacing).is_planar]
    columns: dict[str, Sequence[float]] = {
        "slices": [record.shape[1] for record in solid],
        "height (pixels)": [record.shape[2] for record in records],
        "width (pixels)": [record.shape[3] for record in records],
        "slice spacing (mm)": [record.spacing[0] for record in solid],
        "pixel spacing (mm)": [min(record.spacing[1:]) for record in records],
        "file size (KiB)": [record.num_bytes / 1024 for record in records],
    }
    return Fingerprint(
        num_images=len(records),
        num_quarantined=len(reasons),
        num_bytes=sum(record.num_bytes for record in records),
        num_float16_bytes=sum(2 * math.prod(record.shape) for record in records),
        datasets=_count(record.dataset for record in records),
        modalities=_count(record.modality or UNKNOWN for record in records),
        degrees=dict(sorted(_count(str(record.degree) for record in records).items())),
        channels=dict(sorted(_count(str(record.shape[0]) for record in records).items())),
        dtypes=_count(record.dtype for record in records),
        distributions=[_distribution(name, values) for name, values in columns.items() if values],
        reasons=_count(reasons),
    )


def as_text(found: Fingerprint) -> str:
    """Say it in lines of text."""
    share = found.num_bytes / max(found.num_float16_bytes, 1)
    lines = [
        f"images       {found.num_images}",
        f"quarantined  {found.num_quarantined}",
        f"disk use     {in_bytes(found.num_bytes)}, {share:.0%} of plain float16",
        f"data sets    {_listed(found.datasets)}",
        f"modalities   {_listed(found.modalities)}",
        f"degrees      {_listed(found.degrees)}",
        f"channels     {_listed(found.channels)}",
        f"stored as    {_listed(found.dtypes)}",
        "",
        f"{'':<20}{'smallest':>10}{'median':>10}{'largest':>10}",
    ]
    for spread in found.distributions:
        values = "".join(
            f"{number(value):>10}" for value in (spread.low, spread.median, spread.high)
        )
        lines.append(f"{spread.name:<20}{values}")
    if found.reasons:
        lines += ["", "quarantined because"]
        lines += [f"{count:>6}  {reason}" for reason, count in found.reasons.items()]
    return "\n".join(lines) + "\n"


def in_bytes(count: int) -> str:
    """A number of bytes in the unit that suits it.

    >>> in_bytes(1536)
    '1.5 KiB'
    """
    size, units = float(count), ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1024 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f"{size:.{0 if units[0] == 'bytes' else 1}f} {units[0]}"


def number(value: float) -> str:
    """A number with four digits, or with all those before its point.

    >>> number(0.57031), number(29970.2)
    ('0.5703', '29970')
    """
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _count(names: Iterable[str]) -> dict[str, int]:
    """Images per name, the commonest first, then by name."""
    counts = Counter(names)
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in counts.items())


def _distribution(name: str, values: Sequence[float]) -> Distribution:
    numbers = np.array(values, dtype=np.float64)
    low, high = float(numbers.min()), float(numbers.max())
    edges = np.geomspace(low, high, _NUM_COLUMNS + 1) if high > low else np.array([low, high])
    edges[0], edges[-1] = low, high
    counts = np.histogram(numbers, edges)[0] if high > low else np.array([numbers.size])
    return Distribution(name, low, float(np.median(numbers)), high, edges.tolist(), counts.tolist())
