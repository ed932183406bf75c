"""The catalogue keeps what it is given, counts like NumPy, and weighs data sets."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spadnet.data.catalogue import (
    PERCENTS,
    find_stores,
    load_store,
    read_catalogue,
    statistics,
    write_catalogue,
)
from spadnet.data.image import ImageError
from spadnet.data.inputs import Item
from spadnet.data.prepare_folder import prepare_store
from spadnet.data.prepare_item import Settings


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """One image of set a, two of set b."""
    rng = np.random.default_rng(0)
    items = []
    for key, dataset, weight in (("x", "a", 1.0), ("y", "b", 1.0), ("z", "b", 0.5)):
        np.save(tmp_path / f"{key}.npy", rng.integers(1, 900, (6, 20, 20)).astype(np.int16))
        path = tmp_path / f"{key}.npy"
        items.append(Item(path, key, dataset, "CT", (2.0, 1.0, 1.0), weight))
    prepare_store(items, tmp_path / "stores" / "mine", settings=Settings(), workers=0)
    return tmp_path / "stores" / "mine"


@pytest.mark.parametrize("dtype", ["int16", "uint8", "int32", "float32"])
def test_statistics_are_those_of_numpy(dtype: str) -> None:
    array = np.random.default_rng(0).integers(3, 250, (1, 9, 30, 31)).astype(dtype)
    found = statistics(array)
    assert found["mean"] == pytest.approx(array.mean(dtype=float))
    assert found["std"] == pytest.approx(array.std(dtype=float))
    assert (found["min"], found["max"]) == (array.min(), array.max())
    assert found["median"] == pytest.approx(np.median(array), abs=1)
    expected = np.percentile(array, PERCENTS)
    np.testing.assert_allclose(list(found["percentiles"].values()), expected, atol=1)


def test_order_of_records_changes_nothing(store: Path, tmp_path: Path) -> None:
    records = read_catalogue(store)
    records[2] = records[2]._replace(key="z\u2028\x85")
    write_catalogue(store, records)
    write_catalogue(tmp_path, records[::-1])
    assert (tmp_path / "catalogue.jsonl").read_bytes() == (store / "catalogue.jsonl").read_bytes()
    assert read_catalogue(tmp_path) == records


def test_damage_is_named_with_its_line(store: Path, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"catalogue\.jsonl: no such file; spadnet preprocess"):
        read_catalogue(tmp_path / "nothing")
    path = store / "catalogue.jsonl"
    path.write_text(path.read_text().replace('"key": "y"', '"kez": "y"'))
    with pytest.raises(ImageError, match="line 2 is damaged"):
        read_catalogue(store)


def test_weights_of_sets_and_images_multiply(store: Path) -> None:
    volumes = load_store(store, set_weights={"b": 4.0})
    assert [(v.key, v.weight) for v in volumes] == [("x", 1.0), ("y", 4.0), ("z", 2.0)]
    alike = load_store(store, set_power=0.0)
    assert [v.weight for v in alike] == [1.0, 0.5, 0.25]
    with pytest.raises(ValueError, match=r"no data set 'c' here; there are \['a', 'b'\]"):
        load_store(store, set_weights={"c": 1.0})


def test_published_weights_of_the_sets_that_are_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rng = np.random.default_rng(0)
    for dataset in ("ixi", "MSD-Task03_Liver", "rsna 2020 ped", "mine"):
        np.save(tmp_path / "x.npy", rng.integers(1, 900, (6, 20, 20)).astype(np.int16))
        item = Item(tmp_path / "x.npy", f"{dataset}/x", dataset, "CT", (2.0, 1.0, 1.0), 0.5)
        prepare_store([item], tmp_path / "all" / dataset, settings=Settings(), workers=0)

    def weights(**options: Any) -> dict[str, float]:
        volumes = load_store(tmp_path / "all", **options)
        return {volume.key.removesuffix("/x"): volume.weight for volume in volumes}

    with caplog.at_level(logging.WARNING):
        assert weights(published=True) == {
            "ixi": 0.25,  # 0.5 of the set times 0.5 of the image
            "rsna 2020 ped": 0.15,
            "MSD-Task03_Liver": 0.5,
            "mine": 0.5,
        }
    (told,) = caplog.messages
    assert told.startswith("no recipe of data set 'mine': its weight is 1")
    caplog.clear()
    changed = weights(published=True, set_weights={"mine": 3.0, "ixi": 0.0})
    assert (changed["mine"], changed["ixi"], changed["rsna 2020 ped"]) == (1.5, 0.0, 0.15)
    assert caplog.messages == []
    assert set(weights().values()) == {0.5}


def test_images_say_what_they_are(store: Path) -> None:
    volume = load_store(store, in_chans=3)[0]
    assert volume.image.shape == (3, 6, 20, 20)
    assert volume.spacing == (2.0, 1.0, 1.0)
    assert volume.image.read(((0, 2), (0, 3), (0, 4))).shape == (3, 2, 3, 4)
    with pytest.raises(ImageError, match="x: the image has 1 channels and the model takes 2"):
        load_store(store, in_chans=2)


def test_folder_of_stores(store: Path) -> None:
    assert find_stores(store) == [store]
    assert find_stores(store.parent) == [store]
    assert len(load_store(store.parent)) == 3
