"""The pages of docs/ and README run as written: Python, and commands on tiny images."""

import csv
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from spadnet.cli import VERBS, main
from spadnet.integrations.nnunet.__main__ import main as nnunet

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NOT_RUN = re.compile(r"<!-- not run: \S.* -->")
LANGUAGES = ("python", "sh", "text", "bash")  # those that run are the first two

# What a test adds to a command, so that it takes a second: the last value of a key counts.
_SMALL_TRAINING = (
    "data.tokens=[1,2,2]",
    "data.token_budget=8",
    "trainer.max_steps=2",
    "trainer.accelerator=cpu",
    "trainer.precision=32-true",
    "logger.tensorboard=false",
    "callbacks.show_progress=false",
)
_SMALL = {
    "preprocess": ("workers=0", "contact_sheet=2"),
    "synthesize": ("size=[4,24,24]", "num_labels=3"),
    "pretrain-tokenizer": (*_SMALL_TRAINING, "model.codebook_size=8"),
    "pretrain-mim": (*_SMALL_TRAINING, "model.depth=2"),
    "evaluate": ("draws=20", "threads=1"),
    "finetune": (
        *_SMALL_TRAINING[2:],
        "data.batch_size=2",
        "data.read_workers=0",
        "validate.every_steps=2",
    ),
}
_MADE = {  # by the page itself
    "store.md": ("stores",),
    "pretraining.md": ("runs",),
    "finetuning.md": ("runs/hippocampus",),
}
_WITHOUT = ("recipes", "verify=true", "--help", "--cfg")  # commands that take nothing more


class Block(NamedTuple):
    """A fenced block, the line its content starts at, and whether it is exempt from running."""

    language: str
    code: str
    line: int
    exempt: bool


def fenced_blocks(text: str) -> list[Block]:
    """Find the fenced blocks of a Markdown text."""
    pattern = re.compile(
        r"^(?P<mark>[^\n]*\n)?```(?P<language>\w*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
    )
    return [
        Block(
            match["language"],
            match["code"],
            text.count("\n", 0, match.start("code")) + 1,
            NOT_RUN.fullmatch((match["mark"] or "").strip()) is not None,
        )
        for match in re.finditer(pattern, text)
    ]


def commands(code: str) -> list[list[str]]:
    """Command lines of a shell block; a backslash joins lines, ``#`` starts a comment."""
    return [
        words
        for line in code.replace("\\\n", " ").splitlines()
        if (words := shlex.split(line, comments=True))
    ]


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages take for granted: images, labels and models, all tiny."""
    folder = tmp_path_factory.mktemp("workplace")
    _write_images(folder)
    _write_labelled(folder)
    _train(folder)
    return folder


@pytest.fixture
def here(workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the workplace to run a page in."""
    shutil.copytree(workplace, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)


def _volume(file: Path, voxels: np.ndarray, *, z: float) -> None:
    nib.save(nib.Nifti1Image(voxels, np.diag([1.0, 1.0, z, 1.0])), file)  # type: ignore[no-untyped-call]


def _write_images(folder: Path) -> None:
    rng = np.random.default_rng(0)
    (folder / "scans").mkdir()
    for name, depth, z in (("thick", 5, 5.0), ("thin", 20, 1.0)):
        voxels = rng.integers(1, 400, (33, 32, depth)).astype(np.int16)
        _volume(folder / "scans" / f"{name}.nii.gz", voxels, z=z)
    shutil.copy(folder / "scans" / "thick.nii.gz", folder / "chest.nii.gz")
    Image.fromarray(rng.integers(0, 255, (40, 48), dtype=np.uint8)).save(
        folder / "scans" / "picture.png"
    )
    (folder / "images.csv").write_text("path,modality\nscans/thin.nii.gz,MR\n")


def _write_labelled(folder: Path) -> None:
    rng = np.random.default_rng(0)
    (folder / "chest").mkdir()
    with open(folder / "labels.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "label", "split", "patient"])
        for i in range(18):
            dark, split = i % 2 == 0, ("train", "val", "test")[i // 6]
            picture = rng.integers(0, 90 if dark else 255, (20, 20), dtype=np.uint8)
            Image.fromarray(picture).save(folder / f"chest/{i:04d}.png")
            rows.writerow([f"chest/{i:04d}.png", "normal" if dark else "pneumonia", split, f"p{i}"])
    splits: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for part in ("images", "labels"):
        (folder / "hippocampus" / part).mkdir(parents=True)
    for i, split in enumerate(["train", "train", "val", "test"]):
        depth, z = (18, 1.0) if i % 2 else (6, 4.0)
        label = np.zeros((20, 22, depth), np.uint8)
        label[4:12, 4:10, 1:4], label[4:12, 11:16, 1:4] = 1, 2
        voxels = (rng.random(label.shape) * 50 + 100 * label).astype(np.int16)
        _volume(folder / "hippocampus" / "images" / f"c{i}.nii.gz", voxels, z=z)
        _volume(folder / "hippocampus" / "labels" / f"c{i}.nii.gz", label, z=z)
        splits[split].append(f"c{i}")
    (folder / "hippocampus" / "split.json").write_text(json.dumps(splits))
    (folder / "imagesTs").mkdir()
    with open(folder / "phases.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["in_phase", "out_phase", "label", "split"])
        for split, cases in splits.items():
            for case in (f"{case}.nii.gz" for case in cases):
                image = f"hippocampus/images/{case}"
                rows.writerow([image, image, f"hippocampus/labels/{case}", split])
    for number in range(2):
        shutil.copy(folder / image, folder / "imagesTs" / f"c9_{number:04d}.nii.gz")


def _train(folder: Path) -> None:
    """A store and runs that the pages take for granted, made by the commands of others."""
    runs = folder / "runs"
    store = folder / "stores" / "scans"
    images = ("data=store", f"data.path={store}")
    for argv in (
        ("preprocess", f"in={folder / 'scans'}", f"out={store}"),
        ("pretrain-tokenizer", *images, f"out={runs / 'tokenizer'}"),
        ("pretrain-mim", *images, f"tokenizer={runs / 'tokenizer'}", f"out={runs / 'mim'}"),
        (
            "finetune",
            "experiment=hippocampus_tiny",
            f"data.path={folder / 'hippocampus'}",
            f"out={runs / 'hippocampus'}",
        ),
    ):
        assert main([*argv, *_SMALL[argv[0]]]) == 0
    shutil.copytree(runs, runs / "demo")


def run_command(words: list[str]) -> int:
    """Run a command line of a page in this process, made small."""
    if words[:3] == ["python", "-m", "spadnet.integrations.nnunet"]:
        return nnunet(words[3:])
    assert words[0] == "spadnet", f"mark what a test cannot run: {words[0]}"
    verb, *rest = words[1:]
    small = () if any(word in rest for word in _WITHOUT) else _SMALL.get(verb, ())
    if any(word.startswith("init=") for word in rest):
        small = (*small, "model.depth=2")
    return main([verb, *rest, *small])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_run_in_order(page: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for made in _MADE.get(page.name, ()):
        shutil.rmtree(here / made)
    namespace: dict[str, object] = {"__name__": page.stem}
    for block in fenced_blocks(page.read_text()):
        where = f"{page.name}:{block.line}"
        if block.language == "python":
            # Padding with empty lines makes a traceback name the page's own line.
            code = compile("\n" * (block.line - 1) + block.code, page.name, "exec")
            if not block.exempt:
                exec(code, namespace)
        elif block.language == "sh":
            for words in commands(block.code):
                if not block.exempt:
                    code_ = run_command(words)
                    assert code_ == 0, f"{where}: {shlex.join(words)}: {capsys.readouterr().err}"
                check_names(words, where)


def check_names(words: list[str], where: str) -> None:
    """Commands that are not run name what exists."""
    if words[0] == "spadnet":
        assert words[1] in VERBS, where
    for script in (word for word in words if word.startswith("tools/")):
        assert (ROOT / script).is_file(), f"{where}: {script}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_hold_to_the_form(page: Path) -> None:
    text = page.read_text()
    blocks = fenced_blocks(text)
    assert len(blocks) * 2 == len(re.findall(r"^```", text, re.MULTILINE))
    assert {block.language for block in blocks} <= set(LANGUAGES)
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    if page.name != "README.md":  # its list of verbs
        assert not re.search(r"^ {4}\S*spadnet ", prose, re.MULTILINE), "a command outside a block"
    for target in re.findall(r"\]\(([^)#:]+)\)", prose):  # links within the repository
        assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_pages_are_linked_and_blocks_left_out_are_rare() -> None:
    readme = PAGES[0].read_text()
    for page in PAGES[1:]:
        assert f"(docs/{page.name})" in readme, f"README does not link {page.name}"
    blocks = [block for page in PAGES for block in fenced_blocks(page.read_text())]
    run = [block for block in blocks if block.language in ("python", "sh")]
    assert sum(block.exempt for block in run) < len(run) / 3


def test_readme_lists_every_verb() -> None:
    listed = re.findall(r"^    spadnet ([a-z-]+) ", PAGES[0].read_text(), re.MULTILINE)
    assert sorted(set(listed)) == sorted(VERBS)


def test_blocks_are_found_and_only_marked_ones_are_exempt() -> None:
    text = "a\n\n```python\nx = 1\n```\n<!-- not run: why -->\n```sh\ny a=[1] \\\n  b # c\n```\n"
    blocks = fenced_blocks(text)
    assert blocks == [
        Block("python", "x = 1\n", 4, False),
        Block("sh", "y a=[1] \\\n  b # c\n", 8, True),
    ]
    assert commands(blocks[1].code) == [["y", "a=[1]", "b"]]
