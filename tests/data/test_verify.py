"""A flipped byte anywhere in a store is found and the file named."""

from pathlib import Path

import numpy as np
import pytest

from spadnet.data.catalogue import read_catalogue
from spadnet.data.image import ImageError
from spadnet.data.inputs import Item
from spadnet.data.prepare_folder import prepare_store
from spadnet.data.prepare_item import Settings
from spadnet.data.verify import SUMS, find_damage, write_sums


@pytest.fixture
def store(tmp_path: Path) -> Path:
    rng, items = np.random.default_rng(0), []
    for name in ("x", "y"):
        path = tmp_path / f"{name}.npy"
        np.save(path, rng.integers(1, 900, (6, 20, 20)).astype(np.int16))
        items.append(Item(path, name, "a & b", "CT", (2.0, 1.0, 1.0)))
    prepare_store(items, tmp_path / "out", settings=Settings(), workers=0)
    write_sums(tmp_path / "out", ["catalogue.jsonl", "quarantine.jsonl"])
    return tmp_path / "out"


def flip(path: Path, place: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 1
    path.write_bytes(content)


def test_whole_store_is_fine(store: Path) -> None:
    calls: list[tuple[int, int, int]] = []
    assert find_damage(store, report=lambda *numbers: calls.append(numbers)) == []
    assert calls[-1] == (4, 4, 0)


@pytest.mark.parametrize("place", [0.0, 0.3, 0.5, 0.9, 1.0])
def test_flipped_byte_of_an_image_is_found(store: Path, place: float) -> None:
    file = read_catalogue(store)[1].file
    flip(store / file, place)
    assert [fault.file for fault in find_damage(store)] == [file]


@pytest.mark.parametrize("place", [0.0, 0.1, 0.5, 1.0])
def test_flipped_byte_of_the_catalogue_is_found(store: Path, place: float) -> None:
    flip(store / "catalogue.jsonl", place)
    assert "catalogue.jsonl" in {fault.file for fault in find_damage(store)}


def test_missing_and_unknown_files_are_named(store: Path) -> None:
    first, second = (record.file for record in read_catalogue(store))
    (store / first).rename(store / "images" / "stray.b2nd")
    (store / SUMS).unlink()
    reasons = {fault.file: fault.reason for fault in find_damage(store)}
    assert reasons == {
        first: "no such file or directory",
        "images/stray.b2nd": "not in the catalogue",
        SUMS: "missing or damaged: the run that made the store did not end",
    }
    assert second not in reasons


def test_no_store_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no such file"):
        find_damage(tmp_path)
