"""Folders, patterns and tables name the same images; what is wrong with a table is said."""

from pathlib import Path

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
        ("t.csv", "file\na.png\n", "line 2 has no 'path'"),
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


def test_nothing_there_is_an_error(scans: Path) -> None:
    with pytest.raises(ImageError, match="no file matches"):
        list_items(str(scans / "*.nii"))
    with pytest.raises(ImageError, match="no such file or folder"):
        list_items(str(scans / "absent"))
