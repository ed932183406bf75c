"""Checkpoint folders: what is saved is what is loaded, and every fault says its reason."""

import errno
import inspect
import json
import re
import signal
import stat
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import errors
from torch import Tensor, nn

from spadnet.models.mim import MaskedImageModel
from spadnet.models.tokenizer import Tokenizer
from spadnet.models.vit import SpadViT
from spadnet.weights.contract import INTENSITY_RULE, Model, contract_of
from spadnet.weights.hub import (
    create_model,
    load_checkpoint,
    load_pretrained,
    load_tokenizer,
    load_vit,
    save_pretrained,
)

DEGREE = 2
SIZE = (8, 32, 48)


def tiny_tokenizer(**changes: Any) -> Tokenizer:
    return Tokenizer(**{"in_chans": 1, "widths": (8, 8, 16), "codebook_size": 8, **changes})


def tiny_vit(**changes: Any) -> SpadViT:
    arguments = {"in_chans": 1, "embed_dim": 32, "depth": 2, "num_heads": 2, "pos_grid": (2, 3, 3)}
    vit = SpadViT(**{**arguments, **changes})
    for parameter in vit.parameters():  # no parameter at a start value that hides a fault
        nn.init.normal_(parameter, std=0.1)
    return vit


MODELS: dict[str, Callable[[], Model]] = {
    "tokenizer": tiny_tokenizer,
    "tokenizer, nearest": lambda: tiny_tokenizer(quantizer="nearest", norm_latent=True),
    "tokenizer, gumbel": lambda: tiny_tokenizer(
        quantizer="gumbel", code_dim=24, decoder_widths=(8, 16, 16), reduction="sum", in_chans=3
    ),
    "tokenizer, short training": lambda: tiny_tokenizer(short_training=True),
    "tokenizer, vqgan": lambda: tiny_tokenizer(
        widths=(32, 32, 64),
        stem_stride=1,
        code_dim=8,
        quantizer="nearest",
        num_residual_blocks=1,
        attention_levels=(2,),
    ),
    "vit": tiny_vit,
    "vit, plain": lambda: tiny_vit(mlp="gelu", num_registers=2, rope_rescale=(0, 0, 0)),
    "vit, unusual": lambda: tiny_vit(
        num_classes=3,
        in_chans=2,
        mlp_ratio=1.7,
        qkv_bias=False,
        sub_ln=False,
        rope_rescale=(-1, 4, 4),
        rope_base=100.0,
        rope_depth_base=77.0,
        global_pool="avg",
        norm_after_pool=True,
        drop_rate=0.1,
        drop_path_rate=0.2,
        norm_eps=1e-6,
        mean=(0.1, 0.2),
        std=(0.3, 1.0),
    ),
    "mim": lambda: MaskedImageModel(tiny_vit(), codebook_size=8, num_mask_layers=2),
}


def outputs(model: Model) -> Tensor:
    """Everything a model computes on one fixed image, as one tensor."""
    model.eval()
    generator = torch.Generator().manual_seed(1)
    channels = contract_of(model).channels
    x = torch.rand(1, channels, *SIZE, generator=generator)
    with torch.no_grad():
        if isinstance(model, Tokenizer):
            return model(x, DEGREE)[0]
        if isinstance(model, SpadViT):
            return torch.cat([model.forward_features(x, DEGREE).flatten(), model(x, DEGREE)[0]])
        return model.head(model.hidden(x, torch.tensor([[0, 3, 5]]), DEGREE))


def edit_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture
def tokenizer_folder(tmp_path: Path) -> Path:
    return save_pretrained(tiny_tokenizer(), tmp_path / "tokenizer")


@pytest.fixture
def mim_folder(tmp_path: Path) -> Path:
    return save_pretrained(MODELS["mim"](), tmp_path / "mim")


# --- round trips ---


@pytest.mark.parametrize("name", MODELS)
def test_loaded_model_computes_what_the_saved_one_did(name: str, tmp_path: Path) -> None:
    model = MODELS[name]()
    loaded = load_pretrained(save_pretrained(model, tmp_path / "model"))
    assert type(loaded) is type(model)
    assert not loaded.training
    assert not any(tensor.is_meta for tensor in (*loaded.parameters(), *loaded.buffers()))
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    torch.testing.assert_close(outputs(loaded), outputs(model), rtol=0, atol=0)
    assert loaded.config() == model.config()


@pytest.mark.parametrize("name", MODELS)
def test_config_names_every_constructor_argument(name: str) -> None:
    model = MODELS[name]()
    arguments = set(inspect.signature(type(model)).parameters) - {"short_training"}
    assert set(model.config()) == arguments


def test_saving_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    first = save_pretrained(tiny_tokenizer(), tmp_path / "first", training={"data": ["A"]})
    loaded = load_tokenizer(first)
    second = save_pretrained(loaded, tmp_path / "second", training={"data": ["A"]})
    for name in ("config.json", "model.safetensors", "README.md"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_config_holds_the_contract_and_the_card_tells_it(tmp_path: Path) -> None:
    folder = save_pretrained(
        tiny_vit(mean=(0.25,)),
        tmp_path / "model",
        name="spad_vit_tiny",
        training={"data": ["IXI", "BUSI"], "steps": 7},
        licence="CC-BY-4.0",
        intensity={"percentiles": [1, 99]},
    )
    config = json.loads((folder / "config.json").read_text())
    contract = config["contract"]
    assert (contract["channels"], contract["mean"], contract["stride"]) == (1, [0.25], 16)
    assert contract["axes"] == "zyx"
    assert contract["intensity"] == {**INTENSITY_RULE, "percentiles": [1, 99]}
    assert set(config["versions"]) == {"spadnet", "torch"}
    card = (folder / "README.md").read_text()
    for fact in ("spad_vit_tiny", "IXI, BUSI", "steps: 7", "CC-BY-4.0", "cc-by-4.0", "medical"):
        assert fact in card
    loaded = load_checkpoint(folder)
    assert loaded.contract.intensity["percentiles"] == [1, 99]
    assert loaded.config == config


def test_weights_are_as_readable_as_the_config(tokenizer_folder: Path) -> None:
    modes = {stat.S_IMODE(file.stat().st_mode) for file in tokenizer_folder.iterdir()}
    assert len(modes) == 1


def test_channels_last_and_compiled_models_are_saved_plainly(tmp_path: Path) -> None:
    model = tiny_tokenizer().to(memory_format=torch.channels_last_3d)
    compiled = nn.Module()  # as torch.compile wraps
    compiled._orig_mod = model
    folder = save_pretrained(compiled, tmp_path / "model")
    torch.testing.assert_close(outputs(load_tokenizer(folder)), outputs(model), atol=1e-6, rtol=0)


def test_saving_over_an_older_model_keeps_other_files(tokenizer_folder: Path) -> None:
    (tokenizer_folder / "notes.txt").write_text("mine")
    model = tiny_vit()
    save_pretrained(model, tokenizer_folder)
    torch.testing.assert_close(outputs(load_vit(tokenizer_folder)), outputs(model))
    assert (tokenizer_folder / "notes.txt").read_text() == "mine"
    assert [path.name for path in tokenizer_folder.parent.iterdir()] == ["tokenizer"]


# --- what is taken, adapted, left out ---


def test_encoder_comes_out_of_a_masked_image_model(tmp_path: Path) -> None:
    model = MaskedImageModel(tiny_vit(), codebook_size=8)
    loaded = load_checkpoint(save_pretrained(model, tmp_path / "mim"), expect=SpadViT)
    assert isinstance(loaded.model, SpadViT)
    torch.testing.assert_close(outputs(loaded.model), outputs(model.vit), rtol=0, atol=0)
    assert "mask_token" in loaded.report.unexpected
    assert set(loaded.report.loaded) == set(model.vit.state_dict())
    assert not loaded.report.missing


@pytest.mark.parametrize("degree", [0, 2, 5])
@pytest.mark.parametrize(("old", "new"), [(1, 3), (3, 1), (3, 2)])
def test_channel_adaption_keeps_grey_images(
    old: int, new: int, degree: int, tmp_path: Path
) -> None:
    before = tiny_vit(in_chans=old).eval()
    loaded = load_checkpoint(save_pretrained(before, tmp_path / "model"), in_chans=new)
    assert sorted(loaded.report.adapted) == ["patch_embed.proj.bias", "patch_embed.proj.weight"]
    assert loaded.contract.channels == new
    grey = torch.rand(1, 1, 16, 32, 32)
    with torch.no_grad():
        now = loaded.model(grey.expand(-1, new, -1, -1, -1), degree)
        then = before(grey.expand(-1, old, -1, -1, -1), degree)
    torch.testing.assert_close(now, then, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("form", [{}, {"widths": (32, 32, 64), "stem_stride": 1}])
def test_colour_tokenizer_becomes_grey_by_luminance(form: dict[str, Any], tmp_path: Path) -> None:
    vqgan = {"num_residual_blocks": 1, "code_dim": 8, "quantizer": "nearest"} if form else {}
    before = tiny_tokenizer(in_chans=3, **form, **vqgan).eval()
    after = load_tokenizer(save_pretrained(before, tmp_path / "model"), in_chans=1)
    grey = torch.rand(1, 1, *SIZE)
    with torch.no_grad():
        colour = before(grey.expand(-1, 3, -1, -1, -1), DEGREE)[0]
        now = after(grey, DEGREE)[0]
    luminance = torch.einsum("bczyx,c->bzyx", colour, torch.tensor([0.299, 0.587, 0.114]))
    torch.testing.assert_close(now[:, 0], luminance, atol=1e-5, rtol=1e-5)


def test_position_grid_is_resized_only_on_request(tmp_path: Path) -> None:
    folder = save_pretrained(tiny_vit(), tmp_path / "model")
    loaded = load_checkpoint(folder, pos_grid=(2, 6, 6))
    assert loaded.report.resized == ["pos_embed"]
    assert loaded.model.config()["pos_grid"] == [2, 6, 6]
    same = load_checkpoint(folder, pos_grid=(2, 3, 3))
    assert not same.report.resized
    edit_config(folder, lambda c: c["model"]["arguments"].update(pos_grid=[2, 6, 6]))
    with pytest.raises(ValueError, match=r"1 of another shape \(pos_embed is \[1, 32, 2, 3, 3\]"):
        load_pretrained(folder)


def test_classifier_of_another_width_starts_afresh(tmp_path: Path) -> None:
    model = tiny_vit(num_classes=3)
    folder = save_pretrained(model, tmp_path / "model")
    kept = load_vit(folder, num_classes=3)
    torch.testing.assert_close(kept.head.weight, model.head.weight, rtol=0, atol=0)
    loaded = load_checkpoint(folder, num_classes=5)
    assert loaded.report.missing == ["head.weight", "head.bias"]
    assert sorted(loaded.report.unexpected) == ["head.bias", "head.weight"]
    assert loaded.model.config()["num_classes"] == 5
    assert loaded.model(torch.rand(1, 1, *SIZE), DEGREE).shape == (1, 5)
    assert load_vit(folder, num_classes=0)(torch.rand(1, 1, *SIZE), DEGREE).shape == (1, 32)
    assert "2 missing (head.weight, head.bias)" in str(loaded.report)


def test_loaded_weights_can_be_trained(mim_folder: Path) -> None:
    vit = load_vit(mim_folder).train()
    vit(torch.rand(1, 1, *SIZE), DEGREE).sum().backward()
    assert vit.patch_embed.proj.weight.grad is not None


def test_create_model_takes_pretrained_weights(tmp_path: Path) -> None:
    source = create_model("spad_vit_tiny", in_chans=3)
    assert isinstance(source, SpadViT)
    folder = save_pretrained(source, tmp_path / "model")
    model = create_model(
        "spad_vit_tiny", pretrained=folder, in_chans=1, num_classes=2, drop_path_rate=0.5
    )
    assert isinstance(model, SpadViT)
    assert model.drop_path_rate == 0.5
    assert (model.in_chans, model.num_classes) == (1, 2)
    torch.testing.assert_close(model.pos_embed, source.pos_embed, rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"for spad_vit_small: weights do not fit"):
        create_model("spad_vit_small", pretrained=folder)
    with pytest.raises(ValueError, match="holds a SpadViT, not a Tokenizer"):
        create_model("spad_vt_tiny", pretrained=folder)


@pytest.mark.parametrize(("asked", "width"), [({}, 384), ({"global_pool": "avg"}, 192)])
def test_create_model_pools_as_the_pretrained_model_did(
    tmp_path: Path, asked: dict[str, Any], width: int
) -> None:
    source = create_model("spad_vit_tiny", in_chans=1, depth=1, num_classes=3, global_pool="avgstd")
    folder = save_pretrained(source, tmp_path / "model")
    build = partial(create_model, "spad_vit_tiny", pretrained=folder, in_chans=1, depth=1)
    model, other, alone = (build(num_classes=n, **asked) for n in (3, 2, 0))
    assert model.head.weight.shape == (3, width)
    assert torch.equal(model.head.weight, source.head.weight) == (not asked)
    assert other.head.weight.shape == (2, width)
    assert alone(torch.rand(1, 1, *SIZE), DEGREE).shape == (1, width)


# --- faults ---


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def write(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


def cut(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def config(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    return lambda folder: edit_config(folder, change)


FAULTS: list[tuple[Callable[[Path], object], str]] = [
    (remove("config.json"), "not a checkpoint folder, it has no config.json"),
    (remove("model.safetensors"), "has no model.safetensors"),
    (write("config.json", "{oops"), "config.json: not JSON"),
    (write("config.json", "[1]"), "config.json: not the config of a spadnet checkpoint"),
    (write("config.json", "{}"), "config.json: not the config of a spadnet checkpoint"),
    (lambda f: (f / "config.json").write_bytes(b"\xff\xfe"), "config.json: not JSON"),
    (write("model.safetensors", ""), "model.safetensors: damaged or truncated"),
    (cut, "model.safetensors: damaged or truncated"),
    (config(lambda c: c.update(format_version=2)), "format version 2 is newer"),
    (config(lambda c: c.update(licens="MIT")), "unknown entry 'licens'; did you mean 'licence'"),
    (config(lambda c: c.pop("contract")), "config.json: lacks contract"),
    (config(lambda c: c["model"].update({"class": "Tokeniser"})), "did you mean 'Tokenizer'"),
    (config(lambda c: c["model"]["arguments"].update(width=[8])), "did you mean 'widths'"),
    (config(lambda c: c["model"]["arguments"].update(widths=3)), "cannot build a Tokenizer"),
    (config(lambda c: c["model"]["arguments"].update(quantizer="x")), "quantizer must be"),
    (config(lambda c: c["model"].update(arguments=[1])), "expected entries in_chans"),
    (config(lambda c: c["contract"].update(axes="xyz")), "contract.axes is 'xyz'"),
    (config(lambda c: c["contract"].update(channels=3)), "contract.channels is 3"),
    (config(lambda c: c["contract"]["intensity"].update(range=[-1, 1])), r"range is [-1, 1]"),
    (config(lambda c: c["contract"]["intensity"].update(percentiles=[9, 1])), "must rise"),
    (config(lambda c: c["model"]["arguments"].update(codebook_size=9)), "9"),
    (config(lambda c: c["model"]["arguments"].update(norm_latent=True)), "2 missing (quantizer.n"),
    (config(lambda c: c.update(files=["x"])), "files: expected entries model.safetensors"),
    (config(lambda c: c.update(files={"x": "1"})), "files: unknown entry 'x'"),
    (config(lambda c: c.update(training=3)), "training: expected facts by name, got 3"),
    (config(lambda c: c["model"].update({"class": ["x"]})), "unknown model class ['x']"),
]


@pytest.mark.parametrize(("damage", "message"), FAULTS, ids=[message for _, message in FAULTS])
def test_damaged_folder_says_what_is_wrong_in_one_line(
    damage: Callable[[Path], object], message: str, tokenizer_folder: Path
) -> None:
    damage(tokenizer_folder)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        load_tokenizer(tokenizer_folder)
    assert "\n" not in str(caught.value)
    assert str(tokenizer_folder) in str(caught.value)


def test_wrong_kind_names_the_right_reader(tokenizer_folder: Path, mim_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"holds a Tokenizer, .* spadnet.load_tokenizer reads it"):
        load_vit(tokenizer_folder)
    with pytest.raises(ValueError, match=r"holds a MaskedImageModel.* spadnet.load_encoder reads"):
        load_tokenizer(mim_folder)
    with pytest.raises(ValueError, match=r"no classifier, got num_classes=3"):
        load_tokenizer(tokenizer_folder, num_classes=3)
    with pytest.raises(ValueError, match=r"no position grid"):
        load_tokenizer(tokenizer_folder, pos_grid=(1, 2, 2))


def test_missing_folder_suggests_its_neighbour(
    tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = tokenizer_folder.parent
    with pytest.raises(ValueError, match=r"no such folder; did you mean '.*/tokenizer'\?$"):
        load_tokenizer(parent / "tokeniser")
    with pytest.raises(ValueError, match=r"no such folder$"):
        load_tokenizer(parent / "far" / "away")
    with pytest.raises(ValueError, match="is a file; give the checkpoint folder"):
        load_tokenizer(tokenizer_folder / "model.safetensors")
    monkeypatch.chdir(parent.parent)
    with pytest.raises(ValueError, match=r"no such folder; did you mean"):  # and no hub is asked
        load_tokenizer(f"{parent.name}/tokeniser")


def test_registry_name_without_weights_says_so() -> None:
    with pytest.raises(ValueError, match=r"no weights are shipped .*create_model\('spad_vt_base"):
        load_tokenizer("spad_vt_base")
    with pytest.raises(ValueError, match="no weights are shipped"):
        create_model("spad_vit_base", pretrained=True)
    with pytest.raises(ValueError, match="did you mean 'spad_vit_tiny'"):
        load_vit("spad_vit_tny")


def test_unknown_models_and_values_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot save a Linear"):
        save_pretrained(nn.Linear(1, 1), tmp_path / "model")
    with pytest.raises(ValueError, match="plain types only"):
        save_pretrained(tiny_tokenizer(), tmp_path / "model", training={"path": tmp_path})
    with pytest.raises(ValueError, match="plain types only"):
        save_pretrained(tiny_tokenizer(), tmp_path / "model", training={"loss": float("nan")})
    with pytest.raises(ValueError, match="unknown entry 'percentile'; did you mean 'percentiles'"):
        save_pretrained(tiny_tokenizer(), tmp_path / "model", intensity={"percentile": [1, 2]})
    assert not list(tmp_path.iterdir())


@pytest.fixture
def small_disk() -> Iterator[None]:
    """Let no file grow beyond 20 kB, as a full disk would."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.usefixtures("small_disk")
@pytest.mark.skipif(sys.platform == "win32", reason="no file size limit")
def test_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="the model was not saved") as caught:
        save_pretrained(tiny_tokenizer(), tmp_path / "model")
    assert caught.value.errno == errno.EFBIG
    assert str(tmp_path / "model") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_failed_save_leaves_the_older_model(
    tokenizer_folder: Path, request: pytest.FixtureRequest
) -> None:
    before = {file.name: file.read_bytes() for file in tokenizer_folder.iterdir()}
    request.getfixturevalue("small_disk")
    with pytest.raises(OSError, match="the model was not saved"):
        save_pretrained(tiny_vit(), tokenizer_folder)
    assert {file.name: file.read_bytes() for file in tokenizer_folder.iterdir()} == before


def test_folder_that_is_a_file_cannot_be_saved_to(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("mine")
    with pytest.raises(OSError, match="the model was not saved"):
        save_pretrained(tiny_tokenizer(), tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model").read_text() == "mine"


# --- hub ---


@pytest.fixture
def hub(tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Stand in for the hub: record each request and answer with the tokenizer's folder."""
    requests: list[dict[str, Any]] = []

    def download(repo: str, **options: Any) -> str:
        requests.append({"repo": repo, **options})
        return str(tokenizer_folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    return requests


@pytest.mark.parametrize("source", ["org/name@v1", "hf-hub:org/name@v1"])
def test_hub_id_with_revision(source: str, hub: list[dict[str, Any]], tmp_path: Path) -> None:
    load_tokenizer(source, cache_dir=tmp_path, token="secret", local_files_only=True)
    (request,) = hub
    assert (request["repo"], request["revision"]) == ("org/name", "v1")
    assert (request["cache_dir"], request["token"]) == (tmp_path, "secret")
    assert request["local_files_only"] is True
    assert "config.json" in request["allow_patterns"]


def test_revision_as_an_argument(hub: list[dict[str, Any]]) -> None:
    load_tokenizer("org/name", revision="v2")
    assert hub[0]["revision"] == "v2"
    with pytest.raises(ValueError, match="revision='v2' says otherwise"):
        load_tokenizer("org/name@v1", revision="v2")
    with pytest.raises(ValueError, match="a hub id has the form"):
        load_tokenizer("hf-hub:name")


def test_local_folders_never_ask_the_hub(
    hub: list[dict[str, Any]], tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tokenizer_folder.parent)
    for source in ("tokenizer", "./tokenizer", f"local-dir:{tokenizer_folder}", tokenizer_folder):
        load_tokenizer(source)
    with pytest.raises(ValueError, match="no such folder"):
        load_tokenizer("local-dir:org/name")
    with pytest.raises(ValueError, match="no such folder"):
        load_tokenizer(Path("org/name"))
    assert not hub


HUB_FAULTS: list[tuple[type[Exception], type[Exception], str]] = [
    (errors.GatedRepoError, ValueError, "access is restricted"),
    (errors.RepositoryNotFoundError, ValueError, "no such repository on the hub"),
    (errors.RevisionNotFoundError, ValueError, "no such revision"),
    (errors.HFValidationError, ValueError, "two"),
    (errors.LocalEntryNotFoundError, OSError, "not in the cache"),
    (ConnectionError, OSError, "download failed: two"),
]


@pytest.mark.parametrize(("fault", "expected", "message"), HUB_FAULTS)
def test_hub_faults_become_one_line(
    fault: type[Exception],
    expected: type[Exception],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def download(repo: str, **options: Any) -> str:
        error = fault.__new__(fault)
        Exception.__init__(error, "two\nlines")
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(expected, match=message) as caught:
        load_tokenizer("org/name")
    assert "hf-hub:org/name" in str(caught.value)
    assert "\n" not in str(caught.value)
