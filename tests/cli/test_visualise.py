"""``spadnet visualise`` writes overlays and maps on the input's grid."""

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import PIL.Image
import pytest

from spadnet.cli import main
from spadnet.models.tokenizer import Tokenizer
from spadnet.models.vit import SpadViT
from spadnet.weights.hub import save_pretrained

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run")
    vit = SpadViT(in_chans=1, embed_dim=16, depth=1, num_heads=2, pos_grid=(2, 2, 2))
    save_pretrained(vit, run / "encoder")
    save_pretrained(
        Tokenizer(in_chans=1, widths=(8, 16), stem_stride=8, codebook_size=11), run / "tokenizer"
    )
    return run


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    voxels = np.random.default_rng(0).integers(1, 99, (33, 32, 6)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([1, 1, 5, 1])), tmp_path / "scan.nii.gz")
    return tmp_path / "scan.nii.gz"


def run(capsys: Capture, *argv: Any) -> tuple[int, str]:
    code = main(["visualise", *map(str, argv)])
    return code, capsys.readouterr().err


def test_maps_lie_on_the_grid_of_the_input(
    scan: Path, models: Path, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "maps"
    arguments = [f"in={scan}", f"out={out}", f"model={models}", f"tokenizer={models}"]
    for _ in range(2):  # a second run writes them again
        assert run(capsys, *arguments)[0] == 0
        names = sorted(path.name for path in out.iterdir())
        assert names == [
            f"scan_{name}{ending}"
            for name in ("attention", "codes", "pca")
            for ending in (".nii.gz", ".png")
        ]
    source = nibabel.load(scan)
    for name in ("attention", "codes", "pca"):
        made = nibabel.load(out / f"scan_{name}.nii.gz")
        assert made.shape[:3] == source.shape
        np.testing.assert_allclose(made.affine, source.affine)
        assert PIL.Image.open(out / f"scan_{name}.png").mode == "RGB"


def test_images_beyond_the_training_are_warned_of_once_for_each_model(
    pictures: Path, tmp_path: Path, capsys: Capture
) -> None:
    vit = SpadViT(in_chans=1, embed_dim=16, depth=1, num_heads=2, pos_grid=(2, 2, 2))
    save_pretrained(vit, tmp_path / "encoder", training={"degrees": [0, 1]})
    tokenizer = Tokenizer(in_chans=1, widths=(8, 16), stem_stride=8, codebook_size=11)
    save_pretrained(tokenizer, tmp_path / "tokenizer", training={"degrees": [2]})
    arguments = [f"in={pictures}", f"out={tmp_path / 'maps'}"]
    models = [f"{name}={tmp_path / kind}" for name, kind in
              (("model", "encoder"), ("tokenizer", "tokenizer"))]  # fmt: skip
    code, err = run(capsys, *arguments, *models)
    assert code == 0, err
    assert err.count("degree 5 of anisotropy was not in the training") == 2
    assert err.count("(degrees 0, 1)") == err.count("(degrees 2)") == 1


def test_one_model_is_enough(pictures: Path, models: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "maps"
    code, err = run(capsys, f"in={pictures / 'a.png'}", f"out={out}", f"tokenizer={models}")
    assert code == 0, err
    assert sorted(path.name for path in out.iterdir()) == ["a_codes.nii.gz", "a_codes.png"]


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        (["model=null"], 2, "model=FOLDER or tokenizer=FOLDER is missing"),
        (["in=null"], 2, "in=FILE is missing"),
        (["in=absent.nii"], 1, "absent.nii: no such file"),
        (["max_tokens=0"], 2, "max_tokens must be at least 1"),
    ],
)
def test_mistakes_are_one_line(
    changes: list[str], code: int, message: str, scan: Path, models: Path, capsys: Capture
) -> None:
    usual = [f"in={scan}", f"out={scan.parent / 'out'}", f"model={models}"]
    names = {change.partition("=")[0] for change in changes}
    kept = [text for text in usual if text.partition("=")[0] not in names]
    found, err = run(capsys, *kept, *changes)
    assert (found, err.count("\n")) == (code, 1)
    assert message in err
    assert not (scan.parent / "out").exists()


def test_models_of_the_wrong_kind_are_refused(scan: Path, models: Path, capsys: Capture) -> None:
    code, err = run(
        capsys, f"in={scan}", f"out={scan.parent / 'out'}", f"tokenizer={models / 'encoder'}"
    )
    assert code == 1
    assert "holds a SpadViT, not a Tokenizer" in err


def test_folder_gives_maps_of_each_image_and_frame(
    scan: Path, models: Path, pictures: Path, tmp_path: Path, capsys: Capture
) -> None:
    voxels = np.random.default_rng(0).integers(1, 99, (33, 32, 6, 2)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([1, 1, 5, 1])), pictures / "film.nii.gz")
    (pictures / "b.png").write_bytes(b"")
    (pictures / "film.png").write_bytes((pictures / "a.png").read_bytes())
    out = tmp_path / "maps"
    code, err = run(capsys, f"in={pictures}", f"out={out}", f"tokenizer={models}")
    assert code == 0, err
    assert "b.png: the file is empty" in err
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*.png")) == [
        "a_codes.png", "film.nii.gz[0]_codes.png", "film.nii.gz[1]_codes.png",
        "film.png_codes.png", "inner/c_codes.png",
    ]  # fmt: skip
    assert "b.png" in (out / "quarantine.jsonl").read_text()


def test_nothing_is_made_of_what_cannot_be_used(
    pictures: Path, models: Path, tmp_path: Path, capsys: Capture
) -> None:
    for path in pictures.rglob("*.png"):
        path.write_bytes(b"")
    for source in (pictures / "a.png", pictures):
        code, err = run(capsys, f"in={source}", f"out={tmp_path / 'maps'}", f"tokenizer={models}")
        assert code == 1
        assert err.splitlines()[-1].startswith("error: ")
        assert "a.png: the file is empty" in err
    assert not (tmp_path / "maps").exists()
