"""A store is the same whoever disturbed its making, and no file stops it."""

import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hostile_files
import nibabel as nib
import numpy as np
import PIL.Image
import pytest

from spadnet.data import prepare_folder
from spadnet.data import prepare_item as prepare_item_module
from spadnet.data.catalogue import Record, read_catalogue
from spadnet.data.image import ImageError
from spadnet.data.inputs import Item, list_items, split_series
from spadnet.data.journal import Fault, Outcome
from spadnet.data.prepare_folder import Prepared, prepare_store
from spadnet.data.prepare_item import Settings, prepare_item

SETTINGS = Settings(max_in_plane=None)


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Two volumes, a series of three frames, a picture and a broken file."""
    folder, rng = tmp_path / "scans", np.random.default_rng(0)
    (folder / "a b").mkdir(parents=True)
    affine = np.diag([-1.0, -1.0, 4.0, 1.0])
    for name in ("one", "two"):
        volume = rng.integers(0, 900, (20, 21, 8)).astype(np.int16)
        nib.save(nib.Nifti1Image(volume, affine), folder / "a b" / f"{name}.nii.gz")
    series = rng.random((10, 11, 8, 3)).astype(np.float32)
    nib.save(nib.Nifti1Image(series, affine), folder / "cine.nii")
    pixels = rng.integers(0, 255, (30, 40, 3), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save(folder / "eye.png")
    (folder / "broken.nii").write_bytes(b"")
    return folder


def make(scans: Path, out: Path, *, workers: int = 0, settings: Settings = SETTINGS) -> Prepared:
    return prepare_store(list_items(str(scans)), out, settings=settings, workers=workers)


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_records_tell_what_was_stored(scans: Path, tmp_path: Path) -> None:
    prepared = make(scans, tmp_path / "out")
    assert read_catalogue(tmp_path / "out") == prepared.records
    keys = [record.key for record in prepared.records]
    assert keys == sorted(keys)
    assert keys == [
        "a b/one.nii.gz",
        "a b/two.nii.gz",
        *(f"cine.nii[{i}]" for i in range(3)),
        "eye.png",
    ]
    assert [record.weight for record in prepared.records] == [1, 1, 5 / 9, 5 / 9, 5 / 9, 1]
    first = prepared.records[0]
    assert first.dataset == "scans"
    assert first.spacing == [4, 1, 1]
    assert first.original_shape == [8, 21, 20]
    assert first.degree == 2
    assert first.dtype == "int16"
    assert first.min < first.mean < first.max
    assert len({record.file for record in prepared.records}) == 6
    assert str(tmp_path) not in (tmp_path / "out" / "catalogue.jsonl").read_text()


def test_bad_file_is_quarantined_with_its_reason(scans: Path, tmp_path: Path) -> None:
    flat = np.zeros((9, 9, 9, 2), np.int16)
    flat[..., 0] = np.arange(9)
    nib.save(nib.Nifti1Image(flat, np.eye(4)), scans / "flat.nii")
    prepared = make(scans, tmp_path / "out")
    lines = (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"file": "broken.nii", "reason": "the file is empty (0 bytes)"},
        {"file": "flat.nii[1]", "reason": "all voxels are 0; there is nothing to see"},
    ]
    assert "flat.nii[0]" in {record.key for record in prepared.records}


def test_bad_series_costs_no_other_of_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "scans" / "case"
    folder.mkdir(parents=True)
    for series, heights in {"1.2.826.1": [0, 3, 6], "1.2.826.2": [0, 3, 9]}.items():
        for height in heights:
            slice_ = hostile_files.dicom(float(height), SeriesInstanceUID=series)
            (folder / f"{series}-{height}.dcm").write_bytes(slice_)
    (folder / "xray.dcm").write_bytes(hostile_files.dicom(0.0, SeriesInstanceUID="1.2.826.3"))
    items = split_series(list_items(str(tmp_path / "scans")))
    prepared = prepare_store(items, tmp_path / "store", settings=SETTINGS, workers=0)
    records = {record.key: record for record in prepared.records}
    assert sorted(records) == ["case/1.2.826.1", "case/xray.dcm"]
    assert records["case/1.2.826.1"].shape[1] == 3
    assert {record.weight for record in prepared.records} == {1.0}
    (fault,) = prepared.faults
    assert fault.file == "case/1.2.826.2"
    assert fault.reason.startswith("uneven slices, 3 to 6 mm apart")


def test_nothing_usable_is_an_error_and_says_where_the_reasons_are(
    scans: Path, tmp_path: Path
) -> None:
    items = [Item(scans / "broken.nii", "broken.nii", "scans")]
    with pytest.raises(ImageError, match=r"none of the 1 files .*quarantine\.jsonl says why"):
        prepare_store(items, tmp_path / "out", settings=SETTINGS, workers=0)


def test_workers_and_order_change_nothing(scans: Path, tmp_path: Path) -> None:
    make(scans, tmp_path / "one")
    items = list_items(str(scans))
    prepare_store(items[::-1], tmp_path / "two", settings=SETTINGS, workers=2)
    assert content(tmp_path / "one") == content(tmp_path / "two")


def _die(item: Item, **options: Any) -> Any:
    if item.key == "eye.png":
        os.kill(os.getpid(), signal.SIGKILL)
    return Outcome([], [Fault(item.key, "read")])


def test_worker_that_dies_costs_one_file(
    scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from spadnet.data import workers

    forked = multiprocessing.get_context("fork")  # keeps the replaced function
    monkeypatch.setattr(workers.multiprocessing, "get_all_start_methods", lambda: ["fork"])
    monkeypatch.setattr(workers.multiprocessing, "get_context", lambda method: forked)
    monkeypatch.setattr(prepare_folder, "prepare_item", _die)
    with pytest.raises(ImageError, match="none of the 5"):
        make(scans, tmp_path / "out", workers=1)
    lines = (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()
    reasons = {row["file"]: row["reason"] for row in map(json.loads, lines)}
    assert len(reasons) == 5
    assert "ended by SIGKILL" in reasons.pop("eye.png")
    assert set(reasons.values()) == {"read"}


def _hang(item: Item, **options: Any) -> Any:
    if item.key == "eye.png":
        os.kill(os.getpid(), signal.SIGSTOP)
    return prepare_item(item, **options)


def test_file_on_which_reading_hangs_is_quarantined(
    scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from spadnet.data import workers

    forked = multiprocessing.get_context("fork")  # keeps the replaced function
    monkeypatch.setattr(workers.multiprocessing, "get_all_start_methods", lambda: ["fork"])
    monkeypatch.setattr(workers.multiprocessing, "get_context", lambda method: forked)
    monkeypatch.setattr(prepare_folder, "prepare_item", _hang)
    items = list_items(str(scans))
    out = tmp_path / "out"
    prepared = prepare_store(items, out, settings=SETTINGS, workers=2, time_limit=2.0)
    assert prepared.faults == [
        ("broken.nii", "the file is empty (0 bytes)"),
        ("eye.png", "took longer than 2 s and was given up"),
    ]
    assert len(prepared.records) == 5
    # The next run tries it again.
    monkeypatch.setattr(prepare_folder, "prepare_item", prepare_item)
    assert make(scans, out).kept == 3
    assert "eye.png" in {record.key for record in read_catalogue(out)}


def _killed_at(call: int, *, after: bool, run: Callable[[], object]) -> bool:
    """Run in another process, killed -9 before or after its n-th replacing of a file."""

    def child() -> None:
        replace, count = os.replace, 0

        def counted(source: Any, target: Any) -> None:
            nonlocal count
            count += 1
            if count == call and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(source, target)
            if count == call:
                os.kill(os.getpid(), signal.SIGKILL)

        os.replace = counted
        run()

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(120)
    return process.exitcode == -signal.SIGKILL


def test_killed_run_goes_on_to_the_same_bytes(scans: Path, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    make(scans, whole)
    expected = content(whole)
    moments = [(call, after) for call in range(1, 10) for after in (False, True)]
    for call, after in moments:
        shutil.rmtree(out, ignore_errors=True)
        assert _killed_at(call, after=after, run=lambda: make(scans, out))
        assert content(out) != expected or call == 9
        make(scans, out)
        assert content(out) == expected, (call, after)
    # Killed again and again, each time a little later.
    shutil.rmtree(out)
    for call in (1, 1, 2, 3):
        assert _killed_at(call, after=True, run=lambda: make(scans, out))
    (out / ".journal.jsonl").open("ab").write(b'{"key": "a b/one.nii.gz", "sig')
    make(scans, out)
    assert content(out) == expected


def test_second_run_keeps_everything(
    scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(scans, tmp_path / "out")
    before = content(tmp_path / "out")
    read: list[str] = []
    work = prepare_folder.prepare_item
    monkeypatch.setattr(
        prepare_folder,
        "prepare_item",
        lambda item, **options: (read.append(item.key), work(item, **options))[1],
    )
    assert make(scans, tmp_path / "out").kept == 4
    assert read == ["broken.nii"]  # may have been mended
    assert content(tmp_path / "out") == before


def test_only_what_changed_is_made_again(scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    make(scans, out)
    shutil.copy(scans / "a b" / "two.nii.gz", scans / "a b" / "one.nii.gz")
    (scans / "eye.png").unlink()
    lost = next(r for r in read_catalogue(out) if r.key == "cine.nii[1]")
    (out / lost.file).unlink()
    prepared = make(scans, out)
    assert prepared.kept == 1
    by_key = {record.key: record for record in prepared.records}
    assert by_key["a b/one.nii.gz"].mean == by_key["a b/two.nii.gz"].mean
    assert "eye.png" not in by_key
    make(scans, tmp_path / "fresh")
    assert content(out) == content(tmp_path / "fresh")
    other = make(scans, out, settings=Settings(crop=False))
    assert other.kept == 0
    assert {r.preprocessing for r in other.records} == {Settings(crop=False).digest()}


def test_store_that_was_packed_otherwise_is_made_again(
    scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as older:
        older.setattr(prepare_item_module, "PACKING", ["older"])
        make(scans, tmp_path / "store")
    assert make(scans, tmp_path / "store").kept == 0
    make(scans, tmp_path / "new")
    assert content(tmp_path / "store") == content(tmp_path / "new")


def test_store_of_other_images_is_left_alone(scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    make(scans, out)
    before = content(out)
    other = [Item(scans / "eye.png", "mine.png", "mine")]
    with pytest.raises(ImageError, match="holds a store of other images"):
        prepare_store(other, out, settings=SETTINGS, workers=0)
    assert content(out) == before


def test_store_of_another_data_set_is_left_alone(scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    make(scans, out)
    before = content(out)
    items = [item._replace(dataset="other") for item in list_items(str(scans))]
    with pytest.raises(ImageError, match="holds a store of data set 'scans', not 'other'; choose"):
        prepare_store(items, out, settings=SETTINGS, workers=0)
    assert content(out) == before


def test_large_pictures_shrink(scans: Path, tmp_path: Path) -> None:
    make(scans, tmp_path / "out", settings=Settings(max_in_plane=16))
    shapes: dict[str, Record] = {r.key: r for r in read_catalogue(tmp_path / "out")}
    eye = shapes["eye.png"]
    assert (eye.dtype, eye.shape[2], eye.window) == ("uint8", 16, [0, 255])
    assert shapes["a b/one.nii.gz"].dtype == "float16"


def test_second_run_at_once_is_refused(scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with prepare_folder._only_one(out), pytest.raises(ImageError, match="another run is writing"):
        make(scans, out)
