"""``spadnet export-weights``: from a training checkpoint to folders that load."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from spadnet.cli import main
from spadnet.models.mim import MaskedImageModel
from spadnet.models.tokenizer import Tokenizer
from spadnet.models.vit import SpadViT
from spadnet.models.vit_sizes import spad_vit_tiny
from spadnet.weights.hub import load_checkpoint, load_pretrained

Capture = pytest.CaptureFixture[str]
MIM = {"name": "spad_vit_tiny", "in_chans": 1, "depth": 2, "num_mask_layers": 2}
MIM |= {"drop_path_rate": 0.0, "grad_checkpointing": False}
TOKENIZER = {"name": "spad_vt_tiny", "in_chans": 1, "quantizer": "soft", "codebook_size": 8}


def write_run(
    folder: Path, section: dict[str, object], steps: dict[int, dict[str, Tensor]]
) -> Path:
    """A run folder as training leaves it, as far as weights are concerned."""
    (folder / "checkpoints").mkdir(parents=True)
    data = {"source": "folder", "path": "/data/IXI"}
    settings = {"model": section, "stage": "x", "name": "run", "seed": 3, "data": data}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    for step, state in steps.items():
        file = folder / "checkpoints" / f"step-{step:08d}.ckpt"
        torch.save({"state_dict": state, "spadnet_finished_steps": step, "loops": {}}, file)
    return folder


def mim_state(seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    mim = MaskedImageModel(spad_vit_tiny(depth=2), codebook_size=8, num_mask_layers=2)
    return {f"model.{key}": value for key, value in mim.state_dict().items()}


@pytest.fixture
def mim_run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "mim", MIM, {5: mim_state(5), 7: mim_state(7)})


def test_stage_2_gives_the_encoder_alone_and_with_its_head(mim_run: Path, tmp_path: Path) -> None:
    assert main(["export-weights", f"in={mim_run}", "licence=CC-BY-4.0"]) == 0
    encoder = load_checkpoint(mim_run / "encoder")
    mim = load_pretrained(mim_run / "mim")
    assert isinstance(encoder.model, SpadViT)
    assert isinstance(mim, MaskedImageModel)
    assert mim.num_mask_layers == 2
    state = mim_state(7)  # the newest
    for key, value in mim.state_dict().items():
        assert torch.equal(value, state[f"model.{key}"]), key
    for key, value in encoder.model.state_dict().items():
        assert torch.equal(value, state[f"model.vit.{key}"]), key
    assert encoder.config["training"] == {
        "stage": "x",
        "run": "run",
        "steps": 7,
        "seed": 3,
        "data": ["IXI"],
    }
    assert encoder.config["licence"] == "CC-BY-4.0"


def test_an_older_checkpoint_and_one_part_go_elsewhere(mim_run: Path, tmp_path: Path) -> None:
    file = mim_run / "checkpoints" / "step-00000005.ckpt"
    out = tmp_path / "out"
    assert main(["export-weights", f"in={file}", "part=encoder", f"out={out}"]) == 0
    assert [path.name for path in out.iterdir()] == ["encoder"]
    kept = load_pretrained(out / "encoder").state_dict()["pos_embed"]
    assert torch.equal(kept, mim_state(5)["model.vit.pos_embed"])


def test_stage_1_gives_the_tokenizer(tmp_path: Path) -> None:
    tokenizer = Tokenizer(in_chans=1, widths=(32, 64, 128), codebook_size=8, norm_latent=True)
    state = {f"tokenizer.{key}": value for key, value in tokenizer.state_dict().items()}
    state["discriminator.0.weight"] = torch.zeros(1)
    run = write_run(tmp_path / "run", TOKENIZER, {1: state})
    assert main(["export-weights", f"in={run}"]) == 0
    loaded = load_pretrained(run / "tokenizer")
    assert isinstance(loaded, Tokenizer)
    assert torch.equal(loaded.quantizer.codebook, tokenizer.quantizer.codebook)


FAULTS: list[tuple[Callable[[Path], object], list[str], int, str]] = [
    (lambda run: None, [], 2, "in=RUN is missing"),
    (lambda run: None, ["in={run}", "part=encodr"], 2, "did you mean 'encoder'"),
    (lambda run: None, ["in={run}", "to=x"], 2, "'to=x': no such setting"),
    (lambda run: None, ["in={run}", "part=tokenizer"], 1, "has no tokenizer; it holds encoder and"),
    (lambda run: None, ["in={run}/none"], 1, "none: no such run or checkpoint"),
    (lambda run: None, ["in={run}/checkpoints"], 1, "holds no checkpoint of a training"),
    (lambda run: (run / "config.yaml").unlink(), ["in={run}"], 1, "config.yaml: missing"),
    (lambda run: (run / "config.yaml").write_text("a: [1"), ["in={run}"], 1, "not YAML"),
    (lambda run: (run / "config.yaml").write_text("3"), ["in={run}"], 1, "not the configuration"),
    (
        lambda run: (run / "config.yaml").write_text("model: {name: spad_vit_tiny, depth: 3}"),
        ["in={run}"],
        1,
        "weights do not fit the model: 17 missing",
    ),
]


@pytest.mark.parametrize(("damage", "argv", "code", "message"), FAULTS)
def test_faults_are_one_line_and_nothing_is_written(
    damage: Callable[[Path], object],
    argv: list[str],
    code: int,
    message: str,
    mim_run: Path,
    capsys: Capture,
) -> None:
    damage(mim_run)
    assert main(["export-weights", *(text.format(run=mim_run) for text in argv)]) == code
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not any((mim_run / name).exists() for name in ("encoder", "mim", "tokenizer"))


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path, capsys: Capture) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "touched",)  # type: ignore[return-value]

    run = write_run(tmp_path / "run", MIM, {1: {"a": Evil()}})  # type: ignore[dict-item]
    assert main(["export-weights", f"in={run}"]) == 1
    assert "broken or not a checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "touched").exists()
