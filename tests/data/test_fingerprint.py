"""The fingerprint counts what the catalogue holds."""

from pathlib import Path

import numpy as np
import pytest

from spadnet.data.catalogue import read_catalogue
from spadnet.data.fingerprint import as_text, fingerprint
from spadnet.data.fingerprint_page import render, thumbnails
from spadnet.data.inputs import Item
from spadnet.data.prepare_folder import prepare_store
from spadnet.data.prepare_item import Settings


@pytest.fixture
def store(tmp_path: Path) -> Path:
    rng, items = np.random.default_rng(0), []
    for name in ("x", "y"):
        path = tmp_path / f"{name}.npy"
        np.save(path, rng.integers(1, 900, (6, 20, 20)).astype(np.int16))
        items.append(Item(path, name, "a & b", "CT", (2.0, 1.0, 1.0)))
    prepare_store(items, tmp_path / "out", settings=Settings(), workers=0)
    return tmp_path / "out"


def test_fingerprint_counts_and_its_page_needs_no_other_file(store: Path) -> None:
    records = read_catalogue(store)
    found = fingerprint(records, ["empty", "empty", "torn"])
    assert (found.num_images, found.num_quarantined) == (2, 3)
    assert found.degrees == {"1": 2}
    assert found.reasons == {"empty": 2, "torn": 1}
    assert found.num_bytes == sum((store / record.file).stat().st_size for record in records)
    text = as_text(found)
    assert "modalities   CT: 2" in text
    assert "     2  empty" in text
    page = render(found, thumbnails(store, records, count=5), title="A <store>")
    assert page.count("data:image/png;base64,") == 2
    assert "A &lt;store&gt;" in page
    assert "a &amp; b" in page
    assert "<script" not in page
    assert "http" not in page
    assert page == render(found, thumbnails(store, records, count=5), title="A <store>")


def test_fingerprint_of_different_images_spreads(store: Path) -> None:
    first, second = read_catalogue(store)
    other = second._replace(shape=[3, 1, 512, 700], spacing=[1e8, 0.5, 0.5], modality=None)
    found = fingerprint([first, other], [])
    spreads = {spread.name: spread for spread in found.distributions}
    assert spreads["slices"].high == 6
    assert (spreads["width (pixels)"].low, spreads["width (pixels)"].high) == (20, 700)
    assert all(sum(spread.counts) in (1, 2) for spread in found.distributions)
    assert found.modalities == {"CT": 1, "unknown": 1}
