"""``spadnet preprocess recipe=NAME``: from a made-up copy of every data set to its store."""

import gzip
from pathlib import Path
from typing import Any

import hostile_files as made
import numpy as np
import pytest
import yaml

from spadnet.cli import main
from spadnet.data.catalogue import Record, load_store, read_catalogue
from spadnet.data.inputs import list_recipe_items
from spadnet.data.prepare_folder import prepare_store
from spadnet.data.prepare_item import Settings
from spadnet.data.recipes import load_recipe

LAYOUTS: dict[str, dict[str, Any]] = yaml.safe_load(
    Path(__file__).with_name("recipe_layouts.yaml").read_text()
)
NUM_FRAMES = {"ACDC": 3, "BrainPTM-2021": 4}
DEPTHS = {"R": 0, "A": 1, "S": 2}  # world axis of a code's first letter


def write(path: Path, seed: int, *, pixels: str | None, num_frames: int) -> None:
    """A small image of the kind that the path's ending asks for."""
    rng, kind = np.random.default_rng(seed), path.name.partition(".")[2].lower()
    path.parent.mkdir(parents=True, exist_ok=True)
    volume = rng.integers(1, 900, (6, 7, 8)).astype(np.int16)
    if kind.endswith("nii.gz"):
        if num_frames > 1:
            volume = rng.integers(1, 900, (6, 7, 8, num_frames)).astype(np.int16)
        path.write_bytes(gzip.compress(made.nifti(volume), 1))
    elif kind.endswith("mha"):
        path.write_bytes(made.mha(volume.tobytes()))
    elif kind.endswith("nrrd"):
        path.write_bytes(made.nrrd(made.NRRD + made.UPRIGHT + "encoding: raw", volume.tobytes()))
    else:
        colours = rng.integers(1, 255, (9, 8, 3), dtype=np.uint8)
        shown = colours[..., 0] if pixels == "gray" else colours
        path.write_bytes(made.picture(shown, "PNG" if kind.endswith("png") else "JPEG"))


def make_copy(root: Path, name: str) -> dict[str, str]:
    """Images of a layout, broken files where the recipe must not look; gives path: modality."""
    layout, recipe = LAYOUTS[name], load_recipe(name)
    for path in [*layout["others"], *layout.get("tables", {})]:
        file = root / path / "1.dcm" if path.endswith("/") else root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(layout.get("tables", {}).get(path, "not an image"))
    for seed, (path, modality) in enumerate(layout["files"].items()):
        if path.endswith("/"):
            (root / path).mkdir(parents=True)
            slices = np.random.default_rng(seed).integers(1, 900, (3, 7, 8)).astype(np.int16)
            for height, voxels in enumerate(slices):
                data = made.dicom(height * 2.0, voxels, Modality=modality[:2])
                (root / path / f"{height}.dcm").write_bytes(data)
            continue
        num_frames = len(layout.get("channels", [])) or NUM_FRAMES.get(name, 1)
        if modality == "MRI T1":  # of BrainPTM, where diffusion alone has directions
            num_frames = 1
        write(root / path, seed, pixels=recipe.pixels, num_frames=num_frames)
    return dict(layout["files"])


def prepare(root: Path, name: str, out: Path) -> list[Record]:
    items = list_recipe_items(load_recipe(name), root)
    prepared = prepare_store(items, out, settings=Settings(), workers=0)
    assert prepared.faults == []
    return prepared.records


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_recipe_makes_a_store(tmp_path: Path, name: str) -> None:
    files, recipe = make_copy(tmp_path / "in", name), load_recipe(name)
    records = prepare(tmp_path / "in", name, tmp_path / "out")
    expected = []
    for modality in files.values():
        told = LAYOUTS[name].get("channels", [modality])
        frames = NUM_FRAMES.get(name, 1) if modality != "MRI T1" else 1
        expected += told * frames
    assert sorted(str(record.modality) for record in records) == sorted(expected)
    assert {record.dataset for record in records} == {name}
    for record in records:
        channels = 3 if recipe.pixels == "rgb" else 1
        assert record.shape[0] == channels
        assert (record.degree == 5) == (recipe.pixels is not None)
        is_even = len(set(record.original_spacing)) == 1
        if is_even and recipe.pixels is None and recipe.orientation[0] in DEPTHS:
            assert abs(record.direction[0][DEPTHS[recipe.orientation[0]]]) == 1
    # What is in the store can be drawn from.
    in_chans = 3 if recipe.pixels == "rgb" else 1
    volumes = load_store(tmp_path / "out", in_chans=in_chans, published=True)
    weights = {record.key: record.weight for record in records}
    for volume in volumes:
        assert volume.weight == pytest.approx(weights[volume.key] * recipe.weight)
        assert 0 < float(volume.image.read_all().max()) <= 1


def test_frames_weigh_by_their_rule(tmp_path: Path) -> None:
    make_copy(tmp_path / "acdc", "ACDC")
    records = prepare(tmp_path / "acdc", "ACDC", tmp_path / "a")
    assert [record.weight for record in records] == pytest.approx([5 / 9] * 6)
    make_copy(tmp_path / "ptm", "BrainPTM-2021")
    weights = {r.key: r.weight for r in prepare(tmp_path / "ptm", "BrainPTM-2021", tmp_path / "b")}
    diffusion = [weights[f"case_1-Diffusion[{index}]"] for index in range(4)]
    assert diffusion == pytest.approx([1, 5 / 9, 5 / 9, 5 / 9])
    assert weights["case_1-T1"] == 1
    make_copy(tmp_path / "msd", "MSD-Task01_BrainTumour")
    records = prepare(tmp_path / "msd", "MSD-Task01_BrainTumour", tmp_path / "c")
    assert [(r.modality, r.weight) for r in records] == [
        ("MRI T2-FLAIR", 1),
        ("MRI T1", 1),
        ("MRI T1c", 1),
        ("MRI T2", 1),
    ]


def test_channels_that_nobody_named_are_quarantined(tmp_path: Path) -> None:
    name = "MSD-Task05_Prostate"
    make_copy(tmp_path / "in", name)
    extra = np.ones((6, 7, 8, 3), np.int16)
    (tmp_path / "in/imagesTr/prostate_07.nii.gz").write_bytes(gzip.compress(made.nifti(extra)))
    items = list_recipe_items(load_recipe(name), tmp_path / "in")
    prepared = prepare_store(items, tmp_path / "out", settings=Settings(), workers=0)
    assert prepared.faults == [("prostate_07", "3 channels where 2 are named")]
    assert len(prepared.records) == 2


def test_grey_data_set_keeps_one_channel_and_refuses_colour(tmp_path: Path) -> None:
    images, rng = tmp_path / "in/CXR8/images/images", np.random.default_rng(0)
    images.mkdir(parents=True)
    grey = rng.integers(1, 255, (9, 8), dtype=np.uint8)
    opaque = np.dstack([grey, grey, grey, np.full_like(grey, 255)])
    (images / "alpha.png").write_bytes(made.picture(opaque, "PNG"))
    colours = rng.integers(1, 255, (9, 8, 3), dtype=np.uint8)
    (images / "colour.png").write_bytes(made.picture(colours, "PNG"))
    items = list_recipe_items(load_recipe("nihchestx_ray"), tmp_path / "in")
    prepared = prepare_store(items, tmp_path / "out", settings=Settings(), workers=0)
    assert prepared.faults == [("colour", "coloured, in a data set that is grey")]
    (record,) = prepared.records
    assert (record.key, record.shape, record.dtype) == ("alpha", [1, 1, 9, 8], "uint8")


def test_clipping_crop_of_the_development_sets(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    volume = rng.integers(-1024, -1000, (20, 20, 20)).astype(np.int16)
    volume[:, :, 5:15] = rng.integers(0, 300, (20, 20, 10))
    volume[0, 0, 0] = 30000  # an outlier, bright
    volume[:, :, 19] = -2000  # a slice of nothing: 5 % of all
    folder = tmp_path / "in/WORD-V0.1.0/imagesTr"
    folder.mkdir(parents=True)
    (folder / "word_0001.nii.gz").write_bytes(gzip.compress(made.nifti(volume)))
    (record,) = prepare(tmp_path / "in", "word", tmp_path / "out")
    low, high = np.percentile(volume, (0.23, 99.73))
    assert record.window == [low, high] == [-2000, high]
    assert record.shape == [1, 19, 20, 20]  # all above the lower percentile
    assert record.preprocessing != Settings().digest()


def test_recipe_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_copy(tmp_path / "CHAOS", "CHAOS")
    arguments = ["preprocess", "recipe=chaos", f"in={tmp_path}", "workers=0"]
    assert main([*arguments, f"out={tmp_path / 'out'}"]) == 0
    assert {record.modality for record in read_catalogue(tmp_path / "out")} == {
        "CT",
        "MRI T1-dual in",
        "MRI T1-dual out",
        "MRI T2-SPIR",
    }
    assert main(["preprocess", f"out={tmp_path / 'out'}", "verify=true"]) == 0
    told = capsys.readouterr()
    assert "CHAOS: 5 files; licence: not known" in told.err
    assert "https://chaos.grand-challenge.org/" in told.err


def test_copy_that_lacks_something_is_used_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "in/IXI-T2/IXI002-Guys-0828-T2.nii.gz", 0, pixels=None, num_frames=1)
    (tmp_path / "in/IXI-T1").mkdir()
    arguments = ["preprocess", "recipe=IXI", f"in={tmp_path / 'in'}", "workers=0", "dataset=mine"]
    assert main([*arguments, f"out={tmp_path / 'out'}"]) == 0
    told = capsys.readouterr().err
    for pattern in ("IXI-T1/*.nii.gz", "IXI-PD/*.nii.gz", "IXI-MRA/*.nii.gz"):
        assert f"IXI: nothing matches '{pattern}'" in told
    assert "IXI-T2/" not in told
    assert [record.dataset for record in read_catalogue(tmp_path / "out")] == ["mine"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["recipe=ixi"], 1, "no images of IXI: nothing matches 'IXI-T1/*.nii.gz'; nothing matches"),
        (["recipe=hnscc"], 1, "no images of HNSCC: there is no 'HNSCC/metadata.csv'"),
        (["recipe=ixy"], 1, "unknown recipe 'ixy'; did you mean 'ixi'"),
        (["recipe=absent.yaml"], 1, "absent.yaml: No such file or directory"),
        (["time_limit=0"], 2, "time_limit must be positive seconds or null, got 0"),
    ],
)
def test_mistake_is_told_in_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    (tmp_path / "in").mkdir()
    folders = [f"in={tmp_path / 'in'}", f"out={tmp_path / 'out'}"]
    assert main(["preprocess", *folders, *arguments]) == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]
    assert not (tmp_path / "out").exists()


def test_recipes_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["preprocess", "recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(LAYOUTS) == 63
    assert main(["preprocess", "recipe"]) == 2
    assert "expected KEY=VALUE, got 'recipe'" in capsys.readouterr().err
