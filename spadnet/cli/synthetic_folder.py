"""The folder that ``spadnet synthesize`` writes: images, labels, a table and a contact sheet."""

import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL.Image

from spadnet.data.atomic import remove_parts, write_atomic
from spadnet.data.image import Grid, ImageError, file_name, orient
from spadnet.data.io import write_like
from spadnet.evaluate.contact_sheet import contact_sheet, tiles
from spadnet.spacing import Spacing
from spadnet.synthesis import SyntheticDataset, SyntheticItem

SETTINGS, TABLE, SHEET = "settings.json", "samples.jsonl", "contact_sheet.png"
PARTS = ("image", "labels", "clean", "bias")
_FOLDERS = {"image": "images", "labels": "labels", "clean": "clean", "bias": "bias"}
_OURS = re.compile(r"\.?synthetic_\d{6}(_view\d+)?(\.\d+)?\.(nii\.gz|png)")
_UPRIGHT = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))


class File(NamedTuple):
    """One file of a sample.

    Attributes:
        part: One of ``PARTS``.
        path: Relative to the folder.
        view: Number of the view from 1; 0 for the image itself.
    """

    part: str
    path: Path
    view: int = 0


class SyntheticFolder:
    """A folder of samples. Every file is whole or not there, so those that are there are kept."""

    def __init__(self, folder: Path, dataset: SyntheticDataset, *, save: Sequence[str]) -> None:
        """Configure.

        Args:
            folder: Where to write.
            dataset: The samples.
            save: Which of ``PARTS`` to write.
        """
        self.folder = folder
        self.dataset = dataset
        self.save = list(save)

    def prepare(self, settings: dict[str, Any], *, overwrite: bool) -> None:
        """Make the folder; refuse one that other settings have made.

        Args:
            settings: All that decides what a sample looks like.
            overwrite: Whether to remove what other settings have made instead.

        Raises:
            ValueError: If there are other settings; the message names one that differs.
        """
        path = self.folder / SETTINGS
        content = json.dumps(settings, indent=2) + "\n"
        if path.exists():
            try:
                old = json.loads(path.read_text(encoding="utf-8"))
            except (UnicodeDecodeError, ValueError) as error:
                raise ImageError(f"{file_name(path)}: damaged; give another out=FOLDER") from error
            changed = sorted(key for key in {*old, *settings} if old.get(key) != settings.get(key))
            if changed and not overwrite:
                key = changed[0]
                raise ValueError(
                    f"{file_name(self.folder)} was made with {key}={old.get(key)}, not "
                    f"{settings.get(key)}; give another out=FOLDER or overwrite=true"
                )
            if changed:
                self._remove_samples(whole=True)
        self._remove_samples(whole=False)
        remove_parts(self.folder)
        write_atomic(path, content.encode())

    def is_done(self, index: int) -> bool:
        """Whether all files of a sample are there."""
        return all((self.folder / file.path).exists() for file in self.files(index))

    def files(self, index: int) -> list[File]:
        """The files of a sample."""
        name, is_flat = f"synthetic_{index:06d}", self.dataset.grid(index)[0].is_planar
        picture = ".png" if is_flat else ".nii.gz"
        values = self._values(index)
        fits = values is None or (values.min() >= 0 and values.max() < 1 << 16)
        found = []
        for part in self.save:
            suffix = picture
            if part == "bias" or (part == "labels" and not fits):
                suffix = ".nii.gz"  # what no picture can hold
            found.append(File(part, Path(_FOLDERS[part], name + suffix)))
        for view in range(1, len(self.dataset.severities) + 1):
            found.append(File("image", Path("images", f"{name}_view{view}{picture}"), view))
        return found

    def write(self, index: int) -> SyntheticItem:
        """Make a sample and write its files.

        Raises:
            OSError: If a file cannot be written; the error names it.
            ImageError: Likewise.
        """
        item = self.dataset[index]
        spacing = self.dataset.grid(index)[0]
        for file in self.files(index):
            path = self.folder / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            if file.part == "labels":
                values = self._values(index)
                array = item.labels.numpy()
                if values is not None:
                    array = values.astype(_smallest_type(values))[array]
            else:
                tensor = item.views[file.view - 1] if file.view else getattr(item, file.part)
                array = tensor[0].numpy()
            _write(array, path, spacing=spacing)
        return item

    def write_table(self) -> None:
        """Write one line per sample: its files, spacing, degree and seed."""
        lines = []
        for index in range(len(self.dataset)):
            files = self.files(index)
            spacing = self.dataset.grid(index)[0]
            row: dict[str, Any] = {
                file.part: file.path.as_posix() for file in files if not file.view
            }
            row = {"path": row.pop("image", None), **row}
            row["views"] = [file.path.as_posix() for file in files if file.view]
            row["degree"] = spacing.degree()
            row["spacing"] = [1.0 if spacing.is_planar else spacing.z, spacing.y, spacing.x]
            row["seed"] = self.dataset.item_seed(index)
            label_map = self.dataset.label_map(index)
            row["label_map"] = None if label_map is None else label_map.name
            lines.append(json.dumps(row) + "\n")
        write_atomic(self.folder / TABLE, "".join(lines).encode())

    def write_sheet(self, rows: Sequence[Sequence[np.ndarray]]) -> None:
        """Write the contact sheet."""
        write_atomic(self.folder / SHEET, _as_png(contact_sheet(rows)))

    def _values(self, index: int) -> np.ndarray | None:
        """The user's numbers of the labels; None for a drawn anatomy."""
        label_map = self.dataset.label_map(index)
        return None if label_map is None else np.array(label_map.values)

    def _remove_samples(self, *, whole: bool) -> None:
        """Remove what interrupted writes left or, with ``whole``, all that was written."""
        for name in _FOLDERS.values():
            for path in (self.folder / name).glob("*synthetic_*" if whole else ".synthetic_*"):
                if _OURS.fullmatch(path.name):
                    path.unlink()
        if whole:
            for name in (TABLE, SHEET):
                (self.folder / name).unlink(missing_ok=True)


def sheet_row(item: SyntheticItem) -> list[np.ndarray]:
    """Tiles of a sample: image and labels, plane by plane, then the views."""
    spacing = Spacing(*item.spacing.tolist())
    pairs = zip(
        tiles(item.image[0], spacing=spacing),
        tiles(item.labels, spacing=spacing, is_label=True),
        strict=True,
    )
    row = [tile for pair in pairs for tile in pair]
    return row + [tiles(view[0], spacing=spacing)[0] for view in item.views]


def _write(array: np.ndarray, path: Path, *, spacing: Spacing) -> None:
    """Write a volume [D, H, W] as NIfTI, or a slice as PNG."""
    if path.suffix == ".png":
        if array.dtype.kind == "f":
            array = np.rint(np.clip(array, 0, 1) * 255).astype(np.uint8)
        write_atomic(path, _as_png(array[0]))
        return
    depth, height, width = array.shape
    grid = Grid(
        size=(depth, height, width),
        spacing=(1.0 if spacing.is_planar else spacing.z, spacing.y, spacing.x),
        direction=_UPRIGHT,
        origin=(0.0, 0.0, 0.0),
        num_axes=3,
    )
    image = orient(array[None], grid, source=str(path))
    write_like(image.array, image, path)


def _smallest_type(values: np.ndarray) -> np.dtype[Any]:
    """Smallest type of whole numbers that holds all values."""
    return np.result_type(np.min_scalar_type(values.min()), np.min_scalar_type(values.max()))


def _as_png(picture: np.ndarray) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(picture).save(file, format="PNG")
    return file.getvalue()
