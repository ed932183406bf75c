"""Recipes: each finds the images of a made-up copy of its data set, and nothing else."""

import logging
from pathlib import Path
from typing import Any

import pytest
import yaml

from spadnet.data.globs import expand_braces, find_glob
from spadnet.data.image import ImageError
from spadnet.data.recipes import (
    find_files,
    format_recipes,
    frame_weights,
    list_recipes,
    load_recipe,
)

LAYOUTS: dict[str, dict[str, Any]] = yaml.safe_load(
    Path(__file__).with_name("recipe_layouts.yaml").read_text()
)
# The table of data sets: names whose images weigh something else than 1.
WEIGHTS = {
    "BraTS2023-GLI": 0.4,
    "BraTS2023-MEN": 0.5,
    "BUSI": 0.4,
    "Chaksu": 0.2,
    "CheXpert": 0.007,
    "HC18": 0.2,
    "iChallenge-ADAM": 0.2,
    "iChallenge-PALM": 0.2,
    "iChallenge-REFUGE2": 0.1,
    "IDRiD": 0.5,
    "IXI": 0.5,
    "Kaggle-RDC": 0.1,
    "NIHChestX-ray": 0.007,
    "PI-CAI": 0.25,
    "RSNA-2020-PED": 0.3,
    "RSNA-2022-CSFD": 0.6,
}
WEIGHT_ONE = """
ACDC  AMOS22  BCV-Abdomen  BCV-Cervix  BrainPTM-2021  BraTS2023-MET  BraTS2023-PED  BraTS2023-SSA
CGMH Pelvis  CHAOS  CHASE_DB1  CHUAC  crossMoDA2022  EPISURG  FLARE22  HaN-Seg  HNSCC
iChallenge-GAMMA  LIDC-IDRI  MRSpineSeg_Challenge_SMU  MSD-Task01_BrainTumour  MSD-Task02_Heart
MSD-Task03_Liver  MSD-Task04_Hippocampus  MSD-Task05_Prostate  MSD-Task06_Lung  MSD-Task07_Pancreas
MSD-Task08_HepaticVessel  MSD-Task09_Spleen  MSD-Task10_Colon  NCTCT  PelviXNet  Prostate158
PROSTATE-DIAGNOSIS  PROSTATE-MRI  RibFrac  STOIC  TotalSegmentator  VerSe  Vestibular-Schwannoma-SEG
"""
DEVELOPMENT = "FDG-PET-CT-Lesions  FETAL_PLANES_DB  ISLES22  LNQ2023  SPIDER  WORD"
ORIENTATIONS = {
    "BrainPTM-2021": "ASR",
    **{f"BraTS2023-{member}": "SAR" for member in ("GLI", "MEN", "MET", "PED", "SSA")},
    "FDG-PET-CT-Lesions": "SRA",
    "ISLES22": "SRA",
    "LNQ2023": "stored",
    "SPIDER": "RAS",
    "WORD": "stored",
}


def names(text: str) -> list[str]:
    return [name.strip() for line in text.splitlines() for name in line.split("  ") if name.strip()]


def touch(path: Path, content: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def make_tree(root: Path, layout: dict[str, Any]) -> None:
    """Files of a made-up copy; each has its own content."""
    for path in [*layout["files"], *layout["others"]]:
        touch(root / path / "1.dcm" if path.endswith("/") else root / path, path)
    for path, content in layout.get("tables", {}).items():
        touch(root / path, content)


@pytest.mark.parametrize("name", LAYOUTS)
def test_recipe_finds_its_images_and_nothing_else(tmp_path: Path, name: str) -> None:
    layout, recipe = LAYOUTS[name], load_recipe(name)
    make_tree(tmp_path, layout)
    sources = find_files(recipe, tmp_path)
    found = {source.path.relative_to(tmp_path).as_posix(): source.modality for source in sources}
    assert found == {path.rstrip("/"): modality for path, modality in layout["files"].items()}
    keys = [source.key for source in sources]
    assert len(set(keys)) == len(keys)
    assert not any("/" in key for key in keys)
    if "keys" in layout:
        assert keys == layout["keys"]
    for source in sources:
        assert source.weight == 1.0
        assert source.dataset == recipe.name == name
        assert source.channels == tuple(layout.get("channels", ()))
    # The folder that holds the set serves as well, and keys stay.
    root = tmp_path / "all" / recipe.root
    root.mkdir(parents=True)
    for path in list(tmp_path.iterdir()):
        if path.name != "all":
            path.rename(root / path.name)
    again = find_files(recipe, tmp_path / "all")
    assert [source.key for source in again] == keys


def test_every_row_of_the_table_has_a_recipe() -> None:
    recipes = {recipe.name: recipe for recipe in list_recipes()}
    table = {**WEIGHTS, **dict.fromkeys(names(WEIGHT_ONE) + names(DEVELOPMENT), 1.0)}
    assert {name: recipe.weight for name, recipe in recipes.items()} == table
    assert len(table) == 62
    assert set(LAYOUTS) == set(table)
    branches = [recipe.branch for recipe in recipes.values()]
    assert [branches.count(branch) for branch in ("run", "release", "development")] == [55, 1, 6]
    assert {n for n, recipe in recipes.items() if recipe.branch == "development"} == set(
        names(DEVELOPMENT)
    )
    assert {
        n: recipe.orientation for n, recipe in recipes.items() if recipe.orientation != "auto"
    } == ORIENTATIONS
    volumes = set(names(DEVELOPMENT)) - {"FETAL_PLANES_DB"}
    assert {n for n, recipe in recipes.items() if recipe.crop == "clip"} == volumes
    gray = {"CGMH Pelvis", "CheXpert", "NIHChestX-ray", "PelviXNet"}
    assert {n for n, recipe in recipes.items() if recipe.pixels == "gray"} == gray
    for recipe in recipes.values():
        pictures = {"US", "fundus"} & set(recipe.modalities)
        assert (recipe.pixels == "rgb") == bool(pictures), recipe.name


def test_four_dimensional_rules() -> None:
    frames = {
        recipe.name: {group.frames for group in recipe.groups if group.frames != "series"}
        for recipe in list_recipes()
    }
    assert {name: rule for name, rule in frames.items() if rule} == {
        "BrainPTM-2021": {"first_apart"},
        "MSD-Task01_BrainTumour": {"channels"},
        "MSD-Task05_Prostate": {"channels"},
    }
    assert frame_weights("series", 1) == [1.0]
    assert frame_weights("series", 4) == [7 / 16] * 4
    assert frame_weights("first_apart", 5) == [1.0, *[7 / 16] * 4]
    assert frame_weights("first_apart", 1) == [1.0]
    assert frame_weights("channels", 4) == [1.0] * 4


def test_directions_of_ixi_share_their_weight(tmp_path: Path) -> None:
    for number in (0, 1, 2, 3, 5):
        touch(tmp_path / f"IXI-DTI/IXI002-Guys-0828-DTI-{number:02d}.nii.gz")
    touch(tmp_path / "IXI-DTI/IXI012-HH-1211-DTI-07.nii.gz")
    weights = [source.weight for source in find_files(load_recipe("ixi"), tmp_path)]
    assert weights == pytest.approx([1.0, *[7 / 16] * 4, 1.0])


def test_equal_pictures_of_idrid_are_taken_once(tmp_path: Path) -> None:
    folder = "1. Original Images/a. Training Set"
    touch(tmp_path / "A. Segmentation" / folder / "IDRiD_01.jpg", "same")
    touch(tmp_path / "B. Disease Grading" / folder / "IDRiD_118.jpg", "same")
    touch(tmp_path / "B. Disease Grading" / folder / "IDRiD_119.jpg", "else")
    keys = [source.key for source in find_files(load_recipe("IDRiD"), tmp_path)]
    assert keys == ["A-Training-IDRiD_01", "B-Training-IDRiD_119"]


def test_root_may_be_spelt_with_diacritics(tmp_path: Path) -> None:
    path = tmp_path / "Ch\u00e1k\u1e63u/Train/1.0_Original_Fundus_Images/Bosch/Image101.jpg"
    touch(path)
    assert [source.path for source in find_files(load_recipe("chaksu"), tmp_path)] == [path]


def test_clashing_names_get_a_stable_tail(tmp_path: Path) -> None:
    for place in ("train", "test"):
        touch(tmp_path / place / "MR/Case1.nii.gz")
    recipe = load_recipe("mrspineseg_challenge_smu")
    keys = [source.key for source in find_files(recipe, tmp_path)]
    assert len(set(keys)) == 2
    assert all(key.startswith("Case1-") for key in keys)
    touch(tmp_path / "test/MR/Case2.nii.gz")
    assert {source.key for source in find_files(recipe, tmp_path)} == {*keys, "Case2"}


def test_what_is_not_there_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recipe = load_recipe("ixi")
    with pytest.raises(ImageError, match="absent: no such folder"):
        find_files(recipe, tmp_path / "absent")
    with pytest.raises(
        ImageError, match=r"IXI: nothing matches 'IXI-T1/\*\.nii\.gz'; nothing .*T2"
    ):
        find_files(recipe, tmp_path)
    with pytest.raises(ImageError, match=r"there is no 'HNSCC/metadata\.csv'"):
        find_files(load_recipe("hnscc"), tmp_path)
    touch(tmp_path / "IXI-T2/a.nii.gz")
    with caplog.at_level(logging.WARNING):
        find_files(recipe, tmp_path)
    assert "nothing matches 'IXI-PD/*.nii.gz'" in caplog.text
    touch(tmp_path / "file")
    with pytest.raises(ImageError, match="file: not a folder"):
        find_files(recipe, tmp_path / "file")


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ("", "'HNSCC/metadata.csv' lists none"),
        ("Series UID,Modality\n1,CT\n", "no column 'File Location'"),
        ("Series UID,File Location,Number of Images\n1,./a,many\n", "'many' is not a number"),
        ("Series UID,File Location,Number of Images\n1,../../a,9\n", "outside the data set"),
        ("Series UID,File Location,Number of Images\n1,./gone,9\n", "1 images of .* not there"),
        ("Series UID,File Location,Number of Images\n1,./a,9\n", "asks for 'Series Desc"),
    ],
)
def test_bad_tables_are_explained(tmp_path: Path, table: str, reason: str) -> None:
    touch(tmp_path / "HNSCC/metadata.csv", table)
    touch(tmp_path / "HNSCC/a/1.dcm")
    with pytest.raises(ImageError, match=reason) as caught:
        find_files(load_recipe("hnscc"), tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "{}", '{"modality": 3}', '{"modality": {"a": "CT"}}'])
def test_bad_channel_names_are_explained(tmp_path: Path, content: str) -> None:
    touch(tmp_path / "imagesTr/a.nii.gz")
    recipe = load_recipe("MSD-Task06_Lung")
    with pytest.raises(ImageError, match=r"dataset\.json: no such file"):
        find_files(recipe, tmp_path)
    touch(tmp_path / "dataset.json", content)
    with pytest.raises(ImageError, match=r"dataset\.json: 'modality' does not name"):
        find_files(recipe, tmp_path)
    touch(tmp_path / "dataset.json", '{"modality": {"0": "radar"}}')
    with pytest.raises(ImageError, match="all 1 images of MSD-Task06_Lung are left out"):
        find_files(recipe, tmp_path)


def test_unknown_names_get_a_suggestion() -> None:
    with pytest.raises(ValueError, match="unknown recipe 'ixy'; did you mean 'ixi'"):
        load_recipe("ixy")


GOOD = "name: Mine\nroot: mine\nfiles:\n  - {globs: ['*.nii'], modality: CT}\n"


def test_a_recipe_of_one_s_own(tmp_path: Path) -> None:
    touch(tmp_path / "mine.yaml", GOOD)
    touch(tmp_path / "a.nii")
    recipe = load_recipe(str(tmp_path / "mine.yaml"))
    (source,) = find_files(recipe, tmp_path)
    assert (source.key, source.modality, source.weight) == ("a", "CT", 1.0)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (GOOD + "wieght: 2\n", "unknown key 'wieght'; did you mean 'weight'"),
        (GOOD + "weight: heavy\n", "weight must be a number, got 'heavy'"),
        (GOOD + "weight: -1\n", "weight must be positive"),
        (GOOD + "weight: .nan\n", "weight must be positive"),
        (GOOD + "orientation: up\n", "orientation must be one of auto"),
        (GOOD + "pixels: blue\n", "pixels must be one of gray, rgb"),
        (GOOD + "skip: [{path: '('}]\n", "is no pattern"),
        (GOOD + "skip: [{}]\n", "says nothing"),
        (GOOD + "key: [{path: a}]\n", "is must be a text"),
        (GOOD + "drop_duplicates: often\n", "true or false"),
        ("root: a\n", "name must be a text"),
        ("name: a\nroot: b\n", "files must be a list"),
        ("name: a\nroot: b\nfiles: [{modality: CT}]\n", "either globs or a table"),
        ("name: a\nroot: b\nfiles: [{globs: ['*']}]\n", "modality must be"),
        ("name: a\nroot: b\nfiles: [{globs: [1], modality: CT}]\n", "globs must be"),
        (GOOD.replace("CT}", "CT, frames: all}"), "frames must be one of series"),
        (GOOD.replace("CT}", "CT, frames: channels}"), "channels must be"),
        (GOOD.replace("CT}", "CT, series: a}"), "two groups"),
        ("- a\n", "expected keys"),
        ("a: [\n", "mine.yaml"),
    ],
)
def test_wrong_recipes_are_explained(tmp_path: Path, text: str, reason: str) -> None:
    touch(tmp_path / "mine.yaml", text)
    with pytest.raises(ValueError, match=reason) as caught:
        load_recipe(str(tmp_path / "mine.yaml"))
    assert "\n" not in str(caught.value)


def test_table_of_recipes_has_a_line_for_each() -> None:
    lines = format_recipes().splitlines()
    assert len(lines) == 63
    assert next(line for line in lines if line.startswith("ixi ")).split()[:3] == [
        "ixi",
        "0.5",
        "yes",
    ]


def test_globs(tmp_path: Path) -> None:
    for name in ("a/x.png", "a/b/x.png", "a/.hidden/x.png", "a/._x.png", "b[1]/b[1]-x.png"):
        touch(tmp_path / name)
    (tmp_path / "a" / "loop").symlink_to(tmp_path / "a")

    def found(pattern: str) -> list[str]:
        return [path.relative_to(tmp_path).as_posix() for path in find_glob(tmp_path, pattern)]

    assert found("**/*.png") == ["a/b/x.png", "a/x.png", "b[1]/b[1]-x.png"]
    assert found("a/*.png") == ["a/x.png"]
    assert found("*/{case}-x.png") == ["b[1]/b[1]-x.png"]
    assert found("{a,a/b}/x.png") == ["a/b/x.png", "a/x.png"]
    assert found("none/*") == []
    assert expand_braces("{a,b}{c,d}") == ["ac", "ad", "bc", "bd"]
    assert expand_braces("{case}") == ["{case}"]
