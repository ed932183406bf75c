"""Embeddings on disk: one file per image, or one table of the features of all of them."""

import io
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError, safe_open

from spadnet.data.atomic import write_atomic
from spadnet.inference.encoder import Embedding
from spadnet.inference.optional_packages import MissingPackageError, optional_package

Format = Literal["npz", "safetensors", "parquet"]
FORMATS: tuple[Format, ...] = ("npz", "safetensors", "parquet")


class Row(NamedTuple):
    """One image of a table.

    Attributes:
        key: Its name.
        signature: Hash of what it was made from.
        cls: Feature of the whole image, [C].
        spacing: Millimetres along z, y, x as the model saw it; 1e8 along z for 2D images.
        degree: Degree of anisotropy.
    """

    key: str
    signature: str
    cls: np.ndarray
    spacing: tuple[float, float, float]
    degree: int


def as_row(key: str, signature: str, embedding: Embedding) -> Row:
    """What a table keeps of an embedding."""
    z, y, x = embedding.spacing
    return Row(key, signature, embedding.cls.numpy(), (z, y, x), embedding.degree)


# --- one file per image ---


def write_embedding(file: Path, key: str, signature: str, embedding: Embedding) -> None:
    """Write one image's embedding as ``.npz`` or ``.safetensors``.

    The file holds ``cls`` [C], ``tokens`` [D, H, W, C], ``spacing``, ``degree``, ``patch`` and
    ``origin``; see :class:`spadnet.inference.encoder.Embedding`.
    """
    arrays = {
        "cls": embedding.cls.numpy(),
        "tokens": embedding.tokens.numpy(),
        "spacing": np.array(embedding.spacing),
        "degree": np.array(embedding.degree),
        "patch": np.array(embedding.patch),
        "origin": np.array(embedding.origin),
    }
    write_atomic(file, _packed(file, arrays, {"key": key, "signature": signature}))


def signature_in(file: Path) -> str | None:
    """What an embedding was made from; None if there is no whole file."""
    try:
        return str(_texts(file)["signature"])
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, SafetensorError):
        return None


def _packed(file: Path, arrays: dict[str, np.ndarray], texts: dict[str, str]) -> bytes:
    if file.suffix == ".safetensors":
        return safetensors.numpy.save(arrays, metadata=texts)
    stream = io.BytesIO()
    np.savez(stream, **arrays, **{name: np.array(text) for name, text in texts.items()})  # type: ignore[arg-type]
    return stream.getvalue()


def _texts(file: Path) -> dict[str, str]:
    if file.suffix == ".safetensors":
        with safe_open(file, framework="np") as content:
            return dict(content.metadata() or {})
    with np.load(file, allow_pickle=False) as content:
        return {name: str(content[name]) for name in ("key", "signature")}


# --- one table for all ---


def write_table(file: Path, rows: Sequence[Row]) -> None:
    """Write features of many images, sorted by key, as the file's ending says.

    ``.npz`` and ``.safetensors`` hold ``cls`` [N, C], ``spacing`` [N, 3] and ``degree`` [N]; the
    keys are an array ``key`` of the one, JSON in the metadata of the other. ``.parquet`` has a
    column for each.
    """
    rows = sorted(rows, key=lambda row: row.key)
    keys, signatures = [row.key for row in rows], [row.signature for row in rows]
    arrays = {
        "cls": np.stack([row.cls for row in rows]),
        "spacing": np.array([row.spacing for row in rows]),
        "degree": np.array([row.degree for row in rows]),
    }
    if file.suffix == ".parquet":
        arrow = pyarrow()
        columns = {"key": keys, "cls": list(arrays["cls"]), "degree": arrays["degree"]}
        for axis, values in zip(("z", "y", "x"), arrays["spacing"].T, strict=True):
            columns[f"spacing_{axis}"] = values
        sink = arrow.BufferOutputStream()
        arrow.parquet.write_table(arrow.table({**columns, "signature": signatures}), sink)
        content = sink.getvalue().to_pybytes()
    elif file.suffix == ".safetensors":
        texts = {"key": json.dumps(keys), "signature": json.dumps(signatures)}
        content = safetensors.numpy.save(arrays, metadata=texts)
    else:
        stream = io.BytesIO()
        np.savez(stream, **arrays, key=np.array(keys), signature=np.array(signatures))  # type: ignore[arg-type]
        content = stream.getvalue()
    write_atomic(file, content)


def read_table(file: Path) -> list[Row]:
    """Read what :func:`write_table` wrote.

    Raises:
        ValueError: If it is something else, or damaged.
    """
    try:
        columns = _columns(file)
        parts = (columns[name] for name in ("key", "signature", "cls", "spacing", "degree"))
        return [
            Row(str(key), str(signature), np.asarray(cls, np.float32), (z, y, x), int(degree))
            for key, signature, cls, (z, y, x), degree in zip(*parts, strict=True)
        ]
    except MissingPackageError:
        raise
    except Exception as error:  # each library has kinds of its own
        raise ValueError(
            f"{file}: not a table of embeddings, or damaged; move it away to write a new one"
        ) from error


def _columns(file: Path) -> dict[str, Any]:
    if file.suffix == ".parquet":
        table = pyarrow().parquet.read_table(file)
        columns = {name: table[name].to_pylist() for name in table.column_names}
        axes = (columns[f"spacing_{axis}"] for axis in ("z", "y", "x"))
        return {**columns, "spacing": list(zip(*axes, strict=True))}
    if file.suffix == ".safetensors":
        with safe_open(file, framework="np") as content:
            texts = {name: json.loads(text) for name, text in content.metadata().items()}
            return {**texts, **{name: content.get_tensor(name) for name in content.keys()}}  # noqa: SIM118
    with np.load(file, allow_pickle=False) as content:
        return dict(content)


def pyarrow() -> ModuleType:
    """The package pyarrow with its module for Parquet.

    Raises:
        MissingPackageError: If it is not installed.
    """
    optional_package("pyarrow.parquet", extra="parquet", used_for="parquet")
    return optional_package("pyarrow", extra="parquet", used_for="parquet")
