"""What a wheel and an editable installation carry: version, packages, configs, samples, notices."""

import configparser
import importlib.metadata
import importlib.resources
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SAMPLES = ROOT / "spadnet" / "data" / "samples"
MAX_SAMPLES_BYTES = 6_000_000


def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def data_files() -> set[str]:
    """Every configuration and sample file, by the name it must have once installed."""
    configs = {f"spadnet/conf/{p.relative_to(ROOT / 'conf')}" for p in ROOT.glob("conf/**/*.yaml")}
    samples = {str(p.relative_to(ROOT)) for p in SAMPLES.rglob("*") if p.is_file()}
    return configs | samples


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy of the sources, offline, with the environment's setuptools."""
    scratch = tmp_path_factory.mktemp("wheel")
    source = scratch / "source"
    source.mkdir()
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("spadnet", "conf"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    program = "from setuptools import build_meta; build_meta.build_wheel('..')"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=source, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    (built,) = scratch.glob("*.whl")
    return built


def test_version_is_the_same_everywhere() -> None:
    version = setup_cfg()["metadata"]["version"]
    assert importlib.metadata.version("spadnet") == version, "install again: pip install -e ."
    released = re.findall(r"^## \[(\d[^]]*)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert released[0] == version


def test_every_package_is_listed() -> None:
    listed = set(setup_cfg()["options"]["packages"].split())
    folders = {path.parent for path in (ROOT / "spadnet").rglob("*.py")}
    found = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert listed == found | {"spadnet.conf"}
    assert all((folder / "__init__.py").is_file() for folder in folders)


def test_installation_carries_the_configs() -> None:
    config_root = importlib.resources.files("spadnet.conf")
    for path in (ROOT / "conf").rglob("*.yaml"):
        resource = config_root.joinpath(*path.relative_to(ROOT / "conf").parts)
        assert resource.read_text() == path.read_text()
    assert any(ROOT.glob("conf/**/*.yaml"))


def test_installation_carries_the_samples() -> None:
    samples = importlib.resources.files("spadnet.data").joinpath("samples")
    names = {entry.name for entry in samples.iterdir()}
    suffixes = {"".join(Path(name).suffixes[-2:]) for name in names}
    assert ".nii.gz" in suffixes, "no volume among the samples"
    assert suffixes & {".png", ".jpg"}, "no 2D image among the samples"


def test_samples_stay_small() -> None:
    assert sum(path.stat().st_size for path in SAMPLES.rglob("*") if path.is_file()) < (
        MAX_SAMPLES_BYTES
    )


def test_files_named_in_the_notice_exist_and_every_sample_is_named() -> None:
    (notice,) = SAMPLES.glob("NOTICE*")
    named = set(re.findall(r"[\w.+-]+\.(?:nii\.gz|png|jpg)\b", notice.read_text()))
    present = {path.name for path in SAMPLES.iterdir()} - {notice.name}
    assert named
    assert named == {name for name in present if not name.endswith(".md")}


def test_wheel_carries_everything(wheel: Path) -> None:
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "spadnet").rglob("*.py")}
    required = modules | data_files() | {"spadnet/conf/__init__.py", "spadnet/py.typed"}
    with zipfile.ZipFile(wheel) as archive:
        assert not required - set(archive.namelist())


def test_unpacked_wheel_finds_its_own_configs_and_samples(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    program = """
import importlib.resources
for package in ("spadnet.conf", "spadnet.data"):
    for entry in importlib.resources.files(package).rglob("*"):
        print(entry)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "site"), "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    seen = set(done.stdout.splitlines())
    assert {str(tmp_path / "site" / name) for name in data_files()} <= seen
