"""``spadnet preprocess`` from the command line, and training from what it makes."""

import json
from pathlib import Path

import pytest
import torch

from spadnet.cli import main
from spadnet.cli.configure import configure
from spadnet.cli.data import build_data
from spadnet.cli.training import plain
from spadnet.data.catalogue import read_catalogue

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def store(pictures: Path, tmp_path: Path) -> Path:
    (pictures / "bad.png").write_bytes(b"")
    out = tmp_path / "a store"
    assert main(["preprocess", f"in={pictures}", f"out={out}", "workers=0"]) == 0
    return out


def test_store_is_made_described_and_verified(capsys: Capture, store: Path) -> None:
    captured = capsys.readouterr()
    assert "images       3" in captured.out
    assert "quarantined: bad.png: the file is empty (0 bytes)" in captured.err
    assert [record.key for record in read_catalogue(store)] == ["a.png", "b.png", "inner/c.png"]
    files = {path.name for path in store.iterdir()}
    assert files == {
        "images",
        "catalogue.jsonl",
        "quarantine.jsonl",
        "fingerprint.txt",
        "fingerprint.html",
        "SHA256SUMS",
        ".journal.jsonl",
    }
    assert json.loads((store / "quarantine.jsonl").read_text())["file"] == "bad.png"
    assert main(["preprocess", f"out={store}", "verify=true"]) == 0
    assert "every checksum is right" in capsys.readouterr().out


def test_verify_fails_and_names_the_file(store: Path, capsys: Capture) -> None:
    path = store / read_catalogue(store)[0].file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert main(["preprocess", f"out={store}", "verify=true"]) == 1
    captured = capsys.readouterr()
    assert f"BAD {path.relative_to(store)}: damaged" in captured.out
    path.unlink()
    folder = json.dumps(str(store.parent / "my pictures"))
    assert main(["preprocess", f"in={folder}", f"out={store}", "workers=0"]) == 0
    assert main(["preprocess", f"out={store}", "verify=true"]) == 0


def test_pattern_is_taken_as_it_is(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    pattern = pictures / "**" / "*[ac].png"
    assert main(["preprocess", f"in={pattern}", f"out={out}", "workers=0"]) == 0
    assert [record.key for record in read_catalogue(out)] == ["a.png", "inner/c.png"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "out=FOLDER is missing"),
        (["out=x"], 2, "in=FOLDER is missing"),
        (["out=x", "in=/does/not/exist"], 1, "/does/not/exist: no such file or folder"),
        (["out=x", "verify=true"], 1, "no such file; spadnet preprocess in=FOLDER out=x"),
        (["out=x", "in=y", "workers=-1"], 2, "workers must be a whole number"),
        (["out=x", "in=y", "workers=many"], 2, "workers must be a whole number"),
        (["out=x", "in=y", "percentiles=[9,1]"], 2, "two rising numbers"),
        (["out=x", "in=y", "max_in_plane=0"], 2, "must be at least 2"),
        (["out=x", "in=x"], 2, "is the folder of the images"),
        (["out=x", "inn=y"], 2, "unknown key 'inn'"),
    ],
)
def test_mistake_is_told_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["preprocess", *arguments]) == code
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_help_says_what_is_written_and_how_to_train(capsys: Capture) -> None:
    assert main(["preprocess", "--help"]) == 0
    out = capsys.readouterr().out
    for word in ("catalogue.jsonl", "quarantine.jsonl", "fingerprint.html", "verify=true"):
        assert word in out
    assert "data=store data.path=" in out


def test_batches_come_from_the_store(store: Path) -> None:
    def batches(*argv: str) -> list[torch.Tensor]:
        arguments = ["data.tokens=[1,2,2]", "data.synthetic_share=0", "data.augment=false", *argv]
        config = configure("pretrain_tokenizer", arguments)
        assert config is not None
        data = build_data(plain(config), in_chans=1)
        return [micro.image for step in range(2) for micro in data.module.dataset[step]]

    lazy = batches("data=store", f"data.path={store}")
    (store.parent / "my pictures" / "bad.png").unlink()
    whole = batches("data=folder", f"data.path={store.parent / 'my pictures'}")
    assert len(lazy) == len(whole) > 0
    for first, second in zip(lazy, whole, strict=True):
        torch.testing.assert_close(first, second, rtol=0, atol=2e-3)  # float16 in memory
    weighted = batches("data=store", f"data.path={store}", "data.set_weights={my pictures:2}")
    assert torch.equal(weighted[0], lazy[0])


def test_tokenizer_trains_from_the_store(store: Path, tmp_path: Path, capsys: Capture) -> None:
    arguments = [
        "pretrain-tokenizer",
        "data=store",
        f"data.path={store}",
        "data.tokens=[1,2,2]",
        "data.token_budget=8",
        f"out={tmp_path / 'run'}",
        "trainer.max_steps=2",
        "trainer.accelerator=cpu",
        "trainer.precision=32-true",
        "logger.tensorboard=false",
        "model.codebook_size=8",
        "code_start.share=0",
    ]
    assert main(arguments) == 0
    assert "a store" in (tmp_path / "run" / "tokenizer" / "README.md").read_text()
    assert main([*arguments[:2], f"out={tmp_path / 'y'}"]) == 2
    assert "data.path=FOLDER is missing" in capsys.readouterr().err
