"""Read the descriptions of labelled images that users have.

MedMNIST npz files, CSV tables, folders with one subfolder per class, folders of images beside
folders of labels, nnU-Net raw folders, and MONAI's and the Decathlon's lists of files.
"""

import csv
import json
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from spadnet.data.folder import find_images
from spadnet.data.io import SUFFIXES
from spadnet.data.tasks import SPLITS, Case, Kind, Split, TaskData, known_split, patient_of

_BACKGROUND = "background"


class Columns(NamedTuple):
    """Columns of a CSV table.

    Attributes:
        image: Paths; several columns are the channels of one image.
        label: Class, values, or the path of a label map; several are labels of their own.
        split: Where the case belongs; all are for training where there is no such column.
        patient: Whose image it is; taken from the file's name where there is no such column.
    """

    image: tuple[str, ...] = ("image",)
    label: tuple[str, ...] = ("label",)
    split: str = "split"
    patient: str = "patient"


def read_task(
    path: str | Path,
    *,
    kind: Kind | None = None,
    classes: Sequence[str] | None = None,
    columns: Columns = Columns(),  # noqa: B008
    patient_pattern: str | None = None,
    fold: int = 0,
) -> TaskData:
    """Read a description, whichever of the known forms it has.

    Args:
        path: A MedMNIST npz, a CSV table, a JSON list of files, or a folder: of nnU-Net
            (``dataset.json``), of the Decathlon, with ``images`` and ``labels``, or with one
            subfolder per class, perhaps below ``train``, ``val`` and ``test``.
        kind: What is predicted; by default what the form suggests.
        classes: Names of the classes in order; by default what the form tells.
        columns: Of a CSV table.
        patient_pattern: As for ``patient_of``.
        fold: For validation, where the description has folds.

    Raises:
        ValueError: If it has none of these forms or lacks something; the message names the file.
    """
    path = Path(path).expanduser()
    form = _Form(kind, None if classes is None else tuple(map(str, classes)), patient_pattern, fold)
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder")
    suffix = path.suffix.lower()
    if path.is_file() and suffix == ".npz":
        return _read_medmnist(path, form)
    if path.is_file() and suffix == ".csv":
        return _read_csv(path, form, columns)
    if path.is_file() and suffix == ".json":
        return _read_datalist(path, _load_json(path), form)
    if path.is_file():
        raise ValueError(f"{path}: expected a folder, .npz, .csv or .json")
    if (path / "dataset.json").is_file():
        content = _load_json(path / "dataset.json")
        if "training" in content and not (path / "imagesTr").is_dir():
            return _read_datalist(path / "dataset.json", content, form)
        if "training" in content and "channel_names" not in content:
            return _read_datalist(path / "dataset.json", content, form)
        return _read_nnunet(path, content, form)
    if (path / "images").is_dir() and (path / "labels").is_dir():
        return _read_pairs(path, form)
    return _read_class_folders(path, form)


class _Form(NamedTuple):
    kind: Kind | None
    classes: tuple[str, ...] | None
    patient_pattern: str | None
    fold: int

    def patient(self, key: str) -> str | None:
        return patient_of(key, self.patient_pattern)


def _read_medmnist(path: Path, form: _Form) -> TaskData:
    cases: list[Case] = []
    width = highest = 0
    try:
        with np.load(path, allow_pickle=False) as content:
            labels = {split: content[f"{split}_labels"] for split in SPLITS}
    except (KeyError, OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path}: not a MedMNIST file, or cut off: {error}") from error
    for split, rows in labels.items():
        rows = rows.reshape(len(rows), -1)
        width, highest = rows.shape[1], max(highest, int(rows.max(initial=0)))
        for index, row in enumerate(rows):
            target = tuple(float(value) for value in row)
            key = f"{split}-{index:06d}"
            cases.append(Case(key, (path,), target, split, row=(f"{split}_images", index)))
    kind: Kind = form.kind or ("multi_label" if width > 1 else "classification")
    count = width if kind in ("multi_label", "regression") else highest + 1
    return TaskData(path.stem, kind, form.classes or tuple(map(str, range(count))), cases)


def _read_csv(path: Path, form: _Form, columns: Columns) -> TaskData:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: cannot be read as CSV: {error}") from error
    if not rows:
        raise ValueError(f"{path}: no rows")
    for name in (*columns.image, *columns.label):
        if name not in rows[0]:
            raise ValueError(f"{path}: no column {name!r}; there are {', '.join(rows[0])}")
    texts = [[(row[name] or "").strip() for name in columns.label] for row in rows]
    kind = form.kind
    if kind is None:
        are_files = all(text.lower().endswith(SUFFIXES) for (text, *_) in texts)
        kind = (
            "segmentation"
            if are_files
            else "multi_label"
            if len(columns.label) > 1
            else "classification"
        )
    classes = form.classes or _csv_classes(kind, texts, columns, path)
    cases = []
    for number, (row, text) in enumerate(zip(rows, texts, strict=True), start=2):
        where = f"{path}, line {number}"
        images = tuple(_beside(path, (row[name] or "").strip(), where) for name in columns.image)
        key = _without_suffix((row[columns.image[0]] or "").strip())
        split = known_split(row.get(columns.split) or "train", where=where)
        patient = row.get(columns.patient) or form.patient(key)
        target = _csv_target(kind, text, classes, path, where)
        cases.append(Case(key, images, target, split, patient))
    return TaskData(path.stem, kind, classes, cases)


def _csv_classes(
    kind: Kind, texts: list[list[str]], columns: Columns, path: Path
) -> tuple[str, ...]:
    if kind in ("multi_label", "regression"):
        return columns.label
    if kind == "segmentation":
        raise ValueError(
            f"{path}: data.classes=[{_BACKGROUND},...] must name the label map's values"
        )
    found = {text for (text, *_) in texts}
    try:
        return tuple(sorted(found, key=float))
    except ValueError:
        return tuple(sorted(found))


def _csv_target(
    kind: Kind, text: list[str], classes: tuple[str, ...], path: Path, where: str
) -> Path | tuple[float, ...]:
    if kind == "segmentation":
        return _beside(path, text[0], where)
    if kind in ("multi_label", "regression"):
        try:
            return tuple(float(value) for value in text)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
    if text[0] not in classes:
        raise ValueError(f"{where}: class {text[0]!r} is not among {', '.join(classes)}")
    return (float(classes.index(text[0])),)


def _read_class_folders(path: Path, form: _Form) -> TaskData:
    splits = {
        known_split(folder.name, where=str(path)): folder
        for folder in sorted(path.iterdir())
        if folder.is_dir()
        and folder.name.lower() in ("train", "val", "valid", "validation", "test")
    }
    roots: Mapping[Split, Path] = splits or {"train": path}
    found = sorted({f.name for root in roots.values() for f in root.iterdir() if f.is_dir()})
    classes = form.classes or tuple(found)
    if not found:
        raise ValueError(
            f"{path}: neither dataset.json, nor images and labels, nor subfolders per class"
        )
    if unknown := sorted(set(found) - set(classes)):
        raise ValueError(f"{path}: {', '.join(unknown)} not among {', '.join(classes)}")
    cases = []
    for split, root in roots.items():
        for name in found:
            files = find_images(root / name) if (root / name).is_dir() else []
            for file in files:
                key = _without_suffix(str(file.relative_to(path)))
                target = (float(classes.index(name)),)
                cases.append(Case(key, (file,), target, split, form.patient(key)))
    return TaskData(path.name, form.kind or "classification", classes, cases)


def _read_pairs(path: Path, form: _Form) -> TaskData:
    """Folders ``images`` and ``labels`` with files of the same names, perhaps ``split.json``."""
    labels = {_without_suffix(file.name): file for file in find_images(path / "labels")}
    images = {_without_suffix(file.name): file for file in find_images(path / "images")}
    if alone := sorted(images.keys() ^ labels.keys()):
        raise ValueError(f"{path}: image or label missing of {', '.join(alone)}")
    splits: dict[str, Split] = {}
    if (path / "split.json").is_file():
        for name, keys in _load_json(path / "split.json").items():
            split = known_split(name, where=f"{path / 'split.json'}")
            for key in keys:
                if splits.setdefault(key, split) != split:
                    raise ValueError(f"{path / 'split.json'}: {key} is in two splits")
        if gone := sorted(splits.keys() - images.keys()):
            raise ValueError(f"{path / 'split.json'}: no image for {', '.join(gone)}")
    cases = [
        Case(key, (images[key],), labels[key], splits.get(key, "train"), form.patient(key))
        for key in sorted(images)
        if not splits or key in splits
    ]
    if form.classes is None:
        raise ValueError(
            f"{path}: data.classes=[{_BACKGROUND},...] must name the label map's values"
        )
    return TaskData(path.name, "segmentation", form.classes, cases)


def _read_nnunet(path: Path, content: Mapping[str, Any], form: _Form) -> TaskData:
    where = path / "dataset.json"
    channels = content.get("channel_names", content.get("modality"))
    if not isinstance(channels, dict) or "labels" not in content:
        raise ValueError(f"{where}: no channel_names or labels; not a description of nnU-Net")
    ending = str(content.get("file_ending", ".nii.gz"))
    folds = path / "splits_final.json"
    held_out: set[str] = set()
    if folds.is_file():
        found = _load_json(folds)
        if not 0 <= form.fold < len(found):
            raise ValueError(f"{folds}: {len(found)} folds, there is no fold {form.fold}")
        held_out = set(found[form.fold]["val"])
    cases = []
    for folder, split in (("Tr", "train"), ("Ts", "test")):
        for label in sorted((path / f"labels{folder}").glob(f"*{ending}")):
            key = label.name[: -len(ending)]
            images = tuple(
                path / f"images{folder}" / f"{key}_{number:04d}{ending}"
                for number in range(len(channels))
            )
            own = "val" if split == "train" and key in held_out else known_split(split, where=key)
            cases.append(Case(key, images, label, own, form.patient(key)))
    return TaskData(path.name, "segmentation", _label_names(content["labels"], where), cases)


def _read_datalist(path: Path, content: Mapping[str, Any], form: _Form) -> TaskData:
    cases = []
    named = form.classes or (_label_names(content["labels"], path) if "labels" in content else None)
    for name in ("training", "train", "validation", "val", "testing", "test"):
        for entry in content.get(name, []):
            if not isinstance(entry, dict) or "label" not in entry:
                continue  # the Decathlon's test images have no labels
            files = entry["image"] if isinstance(entry.get("image"), list) else [entry.get("image")]
            images = tuple(_beside(path, str(file or ""), str(path)) for file in files)
            key = _without_suffix(images[0].name)
            split = known_split(name, where=str(path))
            if split == "train" and entry.get("fold") == form.fold:
                split = "val"
            label = entry["label"]
            target: Path | tuple[float, ...]
            if isinstance(label, str):
                target = _beside(path, label, str(path))
            else:
                target = tuple(float(v) for v in (label if isinstance(label, list) else [label]))
            cases.append(Case(key, images, target, split, form.patient(key)))
    if not cases:
        raise ValueError(f"{path}: no labelled images under training, validation or testing")
    first = cases[0].target
    kind: Kind = form.kind or (
        "segmentation"
        if isinstance(first, Path)
        else "multi_label"
        if len(first) > 1
        else "classification"
    )
    if named is None:
        if isinstance(first, Path):
            raise ValueError(f"{path}: has no labels; data.classes=[{_BACKGROUND},...] names them")
        highest = max(
            int(v) for case in cases if isinstance(case.target, tuple) for v in case.target
        )
        alone = kind in ("classification", "ordinal")
        named = tuple(map(str, range(highest + 1 if alone else len(first))))
    name = str(content.get("name", path.parent.name if path.stem == "dataset" else path.stem))
    return TaskData(name, kind, named, cases)


def _label_names(labels: Any, where: Path) -> tuple[str, ...]:
    """Names in the order of voxel values, of ``{"0": name}`` or ``{name: 0}``."""
    try:
        if all(str(key).isdigit() for key in labels):
            by_value = {int(key): str(name) for key, name in labels.items()}
        else:
            by_value = {int(value): str(name) for name, value in labels.items()}
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{where}: labels must be single voxel values: {labels!r:.80}") from error
    if sorted(by_value) != list(range(len(by_value))):
        raise ValueError(f"{where}: label values must be 0 to n - 1, got {sorted(by_value)}")
    return tuple(by_value[value] for value in range(len(by_value)))


def _load_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from error


def _beside(table: Path, text: str, where: str) -> Path:
    """A path that a table names, seen from the table's folder."""
    if not text:
        raise ValueError(f"{where}: a path is empty")
    return table.parent / Path(text).expanduser()


def _without_suffix(name: str) -> str:
    lower = name.lower()
    found = max((s for s in SUFFIXES if lower.endswith(s)), key=len, default="")
    return name[: len(name) - len(found)]
