"""Folders, patterns and tables name the same images; what is wrong with a table is said."""

import shutil
from pathlib import Path

import hostile_files
import numpy as np
import PIL.Image
import pytest

from spadnet.data.image import ImageError
from spadnet.data.inputs import list_items


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    folder = tmp_path / "scans"
    (folder / "b").mkdir(parents=True)
    for name in ("c.png", "a.png", "b/d e.png"):
        PIL.Image.fromarray(np.zeros((4, 4), np.uint8)).save(folder / name)
    return folder


def test_folder_pattern_and_tables_agree(scans: Path) -> None:
    folder = list_items(str(scans))
    assert [item.key for item in folder] == ["a.png", "b/d e.png", "c.png"]
    assert {item.dataset for item in folder} == {"scans"}
    assert list_items(str(scans / "**" / "*.png")) == folder
    (scans / "t.csv").write_text("path,age\nc.png,3\nb/d e.png,4\na.png,5\n")
    (scans / "t.jsonl").write_text('{"path": "a.png"}\n{"path": "c.png"}\n{"path": "b/d e.png"}\n')
    for table in ("t.csv", "t.jsonl"):
        assert list_items(str(scans / table), dataset="scans") == folder
    assert {item.dataset for item in list_items(str(scans / "t.csv"))} == {"t"}
    assert [item.key for item in list_items(str(scans / "a.png"))] == ["a.png"]


def test_table_tells_more(scans: Path) -> None:
    (scans / "t.csv").write_text(
        "path,key,dataset,modality,weight,spacing\na.png,first,x,US,0.5,1 2 3\nc.png,,,,0,\n"
    )
    second, first = list_items(str(scans / "t.csv"))
    assert first[1:6] == ("first", "x", "US", (1.0, 2.0, 3.0), 0.5)
    assert second[1:6] == ("c.png", "t", None, None, 0.0)
    (scans / "t.jsonl").write_text('{"path": "a.png", "spacing": [1, 2, 3]}\n')
    assert list_items(str(scans / "t.jsonl"))[0].spacing == (1.0, 2.0, 3.0)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "file\na.png\n", "no column path; there are file"),
        ("t.csv", "path\n", "a table without rows"),
        ("t.csv", "path\na.png\na.png\n", "a.png is listed twice"),
        ("t.csv", "path,spacing\na.png,1 2\n", "spacing must have three values"),
        ("t.csv", "path,weight\na.png,much\n", "line 2: spacing and weight must be numbers"),
        ("t.csv", "path,weight\na.png,-1\n", "must be finite and not negative"),
        ("t.jsonl", '{"path": "a.png"}\n{', "line 2 is not JSON"),
        ("t.jsonl", "[1]\n", "line 1 is not an object"),
        ("other.csv", "", "No such file"),
    ],
)
def test_wrong_table_is_told_in_one_line(scans: Path, name: str, text: str, message: str) -> None:
    (scans / "t.csv").write_text("path\na.png\n")
    if text:
        (scans / name).write_text(text)
    with pytest.raises(ImageError, match=message) as caught:
        list_items(str(scans / name))
    assert "\n" not in str(caught.value)


def test_odd_names_stay_one_name(scans: Path) -> None:
    for name in ("line\u2028two.png", "new\nline.png"):
        (scans / "a.png").rename(scans / name)
        keys = [item.key for item in list_items(str(scans))]
        assert name.replace("\n", "\\n") in keys
        (scans / name).rename(scans / "a.png")
    (scans / "t.jsonl").write_text('{"path": "c.png", "key": "x\u2028y"}\n', encoding="utf-8")
    assert list_items(str(scans / "t.jsonl"))[0].key == "x\u2028y"


def test_pattern_finds_folders_with_dicom_series(tmp_path: Path) -> None:
    for name in ("p1/series1", "p1/series2", "p2/series1/deeper", "p2/other", "p3/series1"):
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True)
        for height in range(2):
            (folder / f"{height}.dcm").write_bytes(hostile_files.dicom(float(height)))
    (tmp_path / "data/p2/series.txt").write_text("no image")
    (tmp_path / "data/p1/series1/0.dcm").rename(tmp_path / "data/p1/series1/new\nline.dcm")
    found = list_items(str(tmp_path / "data/*/series[0-9]"))
    keys = [item.key for item in found]
    assert keys == ["p1/series1", "p1/series2", "p2/series1/deeper", "p3/series1"]
    assert {item.dataset for item in found} == {"data"}
    assert all(item.path.is_dir() for item in found)
    # A file below a folder that matches is not taken twice, whatever else the pattern matches.
    everything = list_items(str(tmp_path / "data/**"))
    assert everything == list_items(str(tmp_path / "data"))
    assert [item.key for item in list_items(str(tmp_path / "data/p1/series2*"))] == ["series2"]
    assert len(list_items(str(tmp_path / "data/p1/*/*.dcm"))) == 4
    (tmp_path / "data/empty").mkdir()
    with pytest.raises(ImageError, match="no image in the folders that match"):
        list_items(str(tmp_path / "data/emp*"))


def test_nothing_there_is_an_error(scans: Path) -> None:
    with pytest.raises(ImageError, match="no file matches"):
        list_items(str(scans / "*.nii"))
    with pytest.raises(ImageError, match="no such file or folder"):
        list_items(str(scans / "absent"))


def test_columns_of_a_table_are_the_channels_of_an_image(scans: Path) -> None:
    (scans / "t.csv").write_text("first,second,path\na.png, c.png,x\nc.png,a.png,y\n")
    choices = (("first", "third"), ("first", "second"), ("path",))
    one, two = list_items(str(scans / "t.csv"), columns=choices)
    assert (one.key, one.paths) == ("a.png", (scans / "a.png", scans / "c.png"))
    assert (two.key, two.paths) == ("c.png", (scans / "c.png", scans / "a.png"))
    assert [item.key for item in list_items(str(scans / "t.csv"))] == ["x", "y"]
    with pytest.raises(ImageError, match=r"t\.csv: no column first, third; there are first, sec"):
        list_items(str(scans / "t.csv"), columns=choices[:1])
    (scans / "t.jsonl").write_text('{"first": "a.png", "second": "c.png"}\n{"first": "b.png"}\n')
    with pytest.raises(ImageError, match="line 2 has no 'second'"):
        list_items(str(scans / "t.jsonl"), columns=choices)


def test_files_of_a_case_are_one_image(scans: Path) -> None:
    for name in ("x_0000.png", "x_0001.png", "b/x_0001.png", "b/x_0002.png", "b/y_2019.png"):
        shutil.copy(scans / "a.png", scans / name)
    assert all(item.paths == (item.path,) for item in list_items(str(scans)))
    found = {item.key: item.paths for item in list_items(str(scans), num_files=2)}
    alone = ("a.png", "c.png", "b/d e.png", "b/x_0002.png", "b/y_2019.png")
    joined = {
        "x.png": (scans / "x_0000.png", scans / "x_0001.png"),
        "b/x.png": (scans / "b/x_0000.png", scans / "b/x_0001.png"),  # whether it is there or not
    }
    assert found == {key: (scans / key,) for key in alone} | joined
    for one in ("x_0001.png", "x_*.png"):
        (item,) = list_items(str(scans / one), num_files=2)
        assert (item.key, item.paths) == ("x.png", joined["x.png"])
    shutil.copy(scans / "a.png", scans / "x.png")
    with pytest.raises(ImageError, match=r"x\.png is listed twice"):
        list_items(str(scans), num_files=2)
