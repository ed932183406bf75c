"""The catalogue of a store: one line of JSON per image, sorted by key."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from spadnet.data.atomic import write_atomic
from spadnet.data.image import Axes, Grid, Image, ImageError, Vector, file_name
from spadnet.data.preprocess import Window
from spadnet.data.recipes import published_weights
from spadnet.data.sampler import balanced_weights
from spadnet.data.store import StoredImage, StoredVolume
from spadnet.data.volume import Volume
from spadnet.spacing import Spacing

FILE = "catalogue.jsonl"
PERCENTS = (0.5, 5.0, 25.0, 75.0, 95.0, 99.5)

_SLAB = 1 << 20  # voxels counted at once
_MAX_SAMPLE = 1 << 22  # voxels that percentiles of float images are taken from


class Record(NamedTuple):
    """One image of a store. Intensities are those of the source, within the kept box.

    Attributes:
        key: Name of the image: the source's path below the input folder, and the frame.
        file: File below the store's folder.
        dataset: Data set it belongs to.
        modality: DICOM's code; None where it is not known.
        weight: How often it is drawn, relative to others of its data set.
        shape: Voxels, C D H W.
        spacing: In mm along z, y, x.
        degree: Of the spacing.
        dtype: Type in which the voxels are stored.
        window: Stored values that stand for 0 and 1.
        original_shape: Voxels along the source's own axes, slowest first.
        original_spacing: In mm along them.
        original_direction: Unit vectors (L, P, S) of them; a sheared file keeps its shear.
        original_origin: World position (L, P, S) in mm of the source's first voxel.
        original_num_axes: Spatial axes of the source: 2 or 3.
        axes: The source's axis behind each of z, y, x.
        flips: Whether each of z, y, x runs against the source's axis.
        direction: Unit vectors (L, P, S) of z, y, x.
        origin: World position (L, P, S) in mm of the first voxel.
        mean: Of all voxels.
        median: Likewise.
        std: Likewise.
        min: Likewise.
        max: Likewise.
        percentiles: By percent, see ``PERCENTS``.
        num_bytes: Size of the file.
        sha256: Of the file.
        preprocessing: Hash of what was done to the image.
    """

    key: str
    file: str
    dataset: str
    modality: str | None
    weight: float
    shape: list[int]
    spacing: list[float]
    degree: int
    dtype: str
    window: list[float]
    original_shape: list[int]
    original_spacing: list[float]
    original_direction: list[list[float]]
    original_origin: list[float]
    original_num_axes: int
    axes: list[int]
    flips: list[bool]
    direction: list[list[float]]
    origin: list[float]
    mean: float
    median: float
    std: float
    min: float
    max: float
    percentiles: dict[str, float]
    num_bytes: int
    sha256: str
    preprocessing: str

    def as_image(self, array: np.ndarray) -> Image:
        """Values on this image's grid with its geometry, for ``paste_back``.

        Args:
            array: [C, D, H, W].
        """
        size, rows = self.original_shape, self.original_direction
        grid = Grid(
            size=(size[0], size[1], size[2]),
            spacing=_vector(self.original_spacing),
            direction=(_vector(rows[0]), _vector(rows[1]), _vector(rows[2])),
            origin=_vector(self.original_origin),
            num_axes=self.original_num_axes,
        )
        axes, flips, own = self.axes, self.flips, self.direction
        return Image(
            array=array,
            spacing=Spacing(*self.spacing),
            direction=(_vector(own[0]), _vector(own[1]), _vector(own[2])),
            origin=_vector(self.origin),
            source=self.key,
            modality=self.modality,
            axes=Axes((axes[0], axes[1], axes[2]), (flips[0], flips[1], flips[2]), grid),
        )


def write_catalogue(folder: Path, records: Iterable[Record]) -> None:
    """Write the catalogue of a store, whole or not at all.

    Args:
        folder: The store.
        records: In any order.
    """
    rows = [record._asdict() for record in sorted(records, key=lambda record: record.key)]
    write_atomic(folder / FILE, to_lines(rows))


def read_catalogue(folder: str | Path) -> list[Record]:
    """Read the catalogue of a store.

    Args:
        folder: The store.

    Raises:
        ImageError: If there is none or it is damaged.
    """
    path = Path(folder) / FILE
    try:
        # Not splitlines: names may hold what Unicode calls line separators.
        lines = path.read_bytes().decode("utf-8").split("\n")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ImageError(
            f"{file_name(path)}: no such file; spadnet preprocess in=FOLDER out={file_name(folder)}"
            " makes a store"
        ) from error
    except UnicodeDecodeError as error:
        raise ImageError(f"{file_name(path)}: damaged: not UTF-8") from error
    records = []
    for number, line in enumerate(lines[:-1] if lines[-1] == "" else lines, 1):
        try:
            records.append(Record(**json.loads(line)))
        except (TypeError, ValueError) as error:
            raise ImageError(f"{file_name(path)}: line {number} is damaged") from error
    return records


def to_lines(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """One line of JSON per row."""
    return "".join(
        json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows
    ).encode("utf-8", "backslashreplace")


def find_stores(folder: str | Path) -> list[Path]:
    """The store in a folder, or the stores in its subfolders, sorted.

    Raises:
        ImageError: If there is none.
    """
    folder = Path(folder)
    if (folder / FILE).is_file() or not folder.is_dir():
        return [folder]
    return sorted(path.parent for path in folder.glob(f"*/{FILE}")) or [folder]


def load_store(
    folder: str | Path,
    *,
    in_chans: int = 1,
    set_weights: Mapping[str, float] | None = None,
    set_power: float = 1.0,
    published: bool = False,
) -> list[Volume]:
    """Images of a store for training; voxels stay on disk until a crop is read.

    Args:
        folder: A store, or a folder of stores.
        in_chans: Channels of the models that will see the images.
        set_weights: Factor per data set; 1 where a set is not named, 0 leaves a set out.
        set_power: A set of n images counts as ``n ** set_power``: 1 weighs images alike, 0 sets.
        published: Whether sets that ``set_weights`` does not name have the weights of the published
            run, see ``published_weights``.

    Raises:
        ImageError: If there is no store, or an image of it does not fit.
        ValueError: If ``set_weights`` names a set that is not there.
    """
    found = [(store, record) for store in find_stores(folder) for record in read_catalogue(store)]
    if not found:
        raise ImageError(f"{file_name(folder)}: a store without images")
    sets = [record.dataset for _, record in found]
    factors = dict(set_weights or {})
    unknown = sorted(set(factors) - set(sets))
    if unknown:
        raise ValueError(f"no data set {unknown[0]!r} here; there are {sorted(set(sets))}")
    if published:
        factors = published_weights(set(sets) - set(factors)) | factors
    weights = balanced_weights(sets, power=set_power, set_weights=factors)
    volumes: list[Volume] = []
    for (store, record), weight in zip(found, weights, strict=True):
        channels, depth, height, width = record.shape
        stored = StoredImage(
            key=record.key,
            shape=(channels, depth, height, width),
            spacing=Spacing(*record.spacing),
            window=Window(*record.window),
            modality=record.modality,
            preprocessing=record.preprocessing,
        )
        try:
            image = StoredVolume(store / record.file, stored, in_chans=in_chans)
        except ValueError as error:
            raise ImageError(f"{record.key}: {error}") from error
        volumes.append(
            Volume(
                image,
                stored.spacing,
                record.key,
                record.weight * weight,
                record.dataset,
                record.modality or "",
            )
        )
    return volumes


def statistics(array: np.ndarray) -> dict[str, Any]:
    """Mean, median, std, min, max and percentiles of all voxels.

    Args:
        array: Voxels. Integers of at most 16 bits are counted; of others, medians and percentiles
            are those of every n-th voxel where there are very many.
    """
    if array.dtype.kind in "iu" and array.dtype.itemsize <= 2:
        return _counted(array)
    values = array.ravel()
    sample = values[:: max(values.size // _MAX_SAMPLE, 1)]
    median, *percentiles = np.percentile(sample, (50.0, *PERCENTS)).tolist()
    return {
        "mean": float(values.mean(dtype=np.float64)),
        "median": median,
        "std": float(values.std(dtype=np.float64)),
        "min": float(values.min()),
        "max": float(values.max()),
        "percentiles": _by_percent(percentiles),
    }


def _counted(array: np.ndarray) -> dict[str, Any]:
    low, high = int(array.min()), int(array.max())
    counts = np.zeros(high - low + 1, dtype=np.int64)
    flat = array.ravel()
    for start in range(0, flat.size, _SLAB):
        slab = flat[start : start + _SLAB].astype(np.int64) - low
        counts += np.bincount(slab, minlength=counts.size)
    values = np.arange(low, high + 1, dtype=np.float64)
    mean = float((counts * values).sum() / flat.size)
    variance = float((counts * (values - mean) ** 2).sum() / flat.size)
    ranks = np.floor(np.array((50.0, *PERCENTS)) / 100 * (flat.size - 1))
    places = np.searchsorted(np.cumsum(counts), ranks, side="right")
    median, *percentiles = values[places].tolist()
    return {
        "mean": mean,
        "median": median,
        "std": variance**0.5,
        "min": float(low),
        "max": float(high),
        "percentiles": _by_percent(percentiles),
    }


def _vector(values: list[float]) -> Vector:
    x, y, z = values
    return x, y, z


def _by_percent(percentiles: list[float]) -> dict[str, float]:
    return {f"{percent:g}": value for percent, value in zip(PERCENTS, percentiles, strict=True)}
