"""The weights in the package: small, whole, documented, and found by name."""

from pathlib import Path

import pytest

from spadnet.cli.doctor import run
from spadnet.models.registry import create_model
from spadnet.models.spad_unet import SpadUNet
from spadnet.weights.available import list_models
from spadnet.weights.checkpoint import CARD_FILE, GOLDEN_FILE, read_config
from spadnet.weights.golden import check_golden
from spadnet.weights.hub import load_pretrained
from spadnet.weights.source import SHIPPED
from spadnet.weights.transfer import put_unet

FOLDERS = sorted(path for path in SHIPPED.iterdir() if path.is_dir())
NAMES = [folder.name for folder in FOLDERS]


def test_they_are_small_and_some_are_there() -> None:
    assert {"spad_vt_tiny", "spad_vit_tiny", "spad_unet_small"} <= set(NAMES)
    assert sum(file.stat().st_size for file in SHIPPED.rglob("*") if file.is_file()) < 25_000_000


@pytest.mark.parametrize("folder", FOLDERS, ids=NAMES)
def test_each_computes_what_it_did_when_it_was_made(folder: Path) -> None:
    model = load_pretrained(folder.name)
    checks = check_golden(model, folder / GOLDEN_FILE)  # which raises where one differs
    assert {check.name.partition(".")[0] for check in checks} > {"degree0", "degree5"}


@pytest.mark.parametrize("folder", FOLDERS, ids=NAMES)
def test_cards_tell_data_licences_compute_figures_and_limits(folder: Path) -> None:
    training = read_config(folder)["training"]
    card = (folder / CARD_FILE).read_text()
    real = [name for name in training["data"] if name != "spadnet synthesis"]
    assert all(any(word in name for word in ("Apache-2.0", "MIT", "BSD-3")) for name in real)
    for fact in (training["compute"], training["limits"], *training["figures"]):
        assert fact in card


def test_unet_starts_networks_of_its_widths() -> None:
    unet = create_model("spad_unet_small", in_chans=2, num_classes=3)  # one level deeper
    assert isinstance(unet, SpadUNet)
    before = {key: value.clone() for key, value in unet.state_dict().items()}
    found = put_unet(unet, "spad_unet_small")
    changed = {key for key, value in unet.state_dict().items() if not value.equal(before[key])}
    assert changed == set(found.taken)
    assert "4 levels of the encoder, 3 of the decoder" in str(found)


def test_they_are_listed() -> None:
    found = {info.source: info for info in list_models() if info.source is not None}
    assert set(found) == set(NAMES)
    for name, info in found.items():
        model = load_pretrained(name)  # which need not be the size's default
        assert info.num_parameters == sum(weight.numel() for weight in model.parameters())


def test_the_doctor_finds_them_whole() -> None:
    assert run(["spad_vt_tiny"]) == 0
