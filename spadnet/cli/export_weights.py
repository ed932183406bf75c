"""``spadnet export-weights``: checkpoint folders out of a training checkpoint."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from spadnet.cli.training import build_model
from spadnet.cli.usage import UsageError
from spadnet.models.mim import MaskedImageModel
from spadnet.models.tokenizer import Tokenizer
from spadnet.models.vit import SpadViT
from spadnet.near_names import suggest
from spadnet.train.checkpoint import find_last, read_checkpoint, step_of
from spadnet.weights.contract import Model, contract_of
from spadnet.weights.convert import StateDict, select
from spadnet.weights.hub import save_pretrained
from spadnet.weights.strict import fit_weights

logger = logging.getLogger(__name__)

KEYS = ("in", "out", "part", "licence")
PARTS = ("tokenizer", "encoder", "mim")


def run(argv: Sequence[str]) -> int:
    """Write what a run has trained so far as checkpoint folders."""
    given = dict(_split(text) for text in argv)
    if "in" not in given:
        raise UsageError("in=RUN is missing: the folder of a run, or one of its checkpoints")
    part = given.get("part")
    if part is not None and part not in PARTS:
        raise UsageError(f"part={part}: no such part{suggest(part, PARTS)}")
    file, folder = find_checkpoint(Path(given["in"]).expanduser())
    settings = read_settings(folder)
    checkpoint = read_checkpoint(file)
    models = rebuild(settings, checkpoint["state_dict"], where=str(file))
    if part is not None and part not in models:
        raise ValueError(f"{file}: has no {part}; it holds {' and '.join(models)}")
    out = Path(given["out"]).expanduser() if "out" in given else folder
    for name, model in models.items():
        if part in (None, name):
            written = save_pretrained(
                model,
                out / name,
                name=settings["model"]["name"],
                training=training_facts(settings, step_of(checkpoint)),
                licence=given.get("licence", "Apache-2.0"),
            )
            logger.info("%s after step %d written to %s", name, step_of(checkpoint), written)
    return 0


def _split(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if key not in KEYS or not equals:
        raise UsageError(f"{text!r}: no such setting{suggest(key, KEYS)}")
    return key, value


def find_checkpoint(path: Path) -> tuple[Path, Path]:
    """The checkpoint to export and the folder of its run.

    Args:
        path: A checkpoint's file, or the folder of a run, whose newest checkpoint is taken.
    """
    if path.is_file():
        return path, path.resolve().parent.parent
    if not path.is_dir():
        raise ValueError(f"{path}: no such run or checkpoint")
    last = find_last(path)
    if last is None:
        raise ValueError(f"{path}: holds no checkpoint of a training")
    return last, path


def read_settings(folder: Path) -> dict[str, Any]:
    """The configuration that a run was started with."""
    file = folder / "config.yaml"
    try:
        settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{file}: missing; it tells how the model is built") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{file}: not YAML: {error}") from error
    model = settings.get("model") if isinstance(settings, dict) else None
    if not isinstance(model, dict) or "name" not in model:
        raise ValueError(f"{file}: not the configuration of a spadnet run")
    return settings


def rebuild(settings: Mapping[str, Any], state: StateDict, *, where: str) -> dict[str, Model]:
    """Build the models of a run and load what it trained.

    Args:
        settings: Configuration of the run.
        state: State dict of its training task.
        where: The checkpoint, for messages.

    Returns:
        ``tokenizer``, or ``encoder`` and ``mim`` (the encoder with its head).
    """
    section = dict(settings["model"])
    section.pop("grad_checkpointing", None)
    averaged = select(state, "averaged.")  # what counts where there is one
    if str(section["name"]).startswith("spad_vt_"):
        tokenizer = build_model(section, prefix="spad_vt_")
        assert isinstance(tokenizer, Tokenizer)
        _load(tokenizer, averaged or select(state, "tokenizer."), where=where)
        return {"tokenizer": tokenizer}
    num_mask_layers = section.pop("num_mask_layers", 1)
    vit = build_model(section, prefix="spad_vit_")
    assert isinstance(vit, SpadViT)
    if "model.head.2.weight" not in state:
        raise ValueError(f"{where}: not the checkpoint of a masked image model")
    codebook_size = state["model.head.2.weight"].shape[0]
    mim = MaskedImageModel(vit, codebook_size=codebook_size, num_mask_layers=num_mask_layers)
    _load(mim, averaged or select(state, "model."), where=where)
    return {"encoder": mim.vit, "mim": mim}


def _load(model: Model, state: StateDict, *, where: str) -> None:
    fitted, _ = fit_weights(state, model, contract=contract_of(model), where=where)
    model.load_state_dict(fitted)


def training_facts(settings: Mapping[str, Any], step: int) -> dict[str, Any]:
    """What a model card tells about the training, as far as the configuration knows it."""
    data = settings.get("data", {})
    source = data.get("path") or data.get("source") or "not recorded"
    return {
        "stage": settings.get("stage"),
        "run": settings.get("name"),
        "steps": step,
        "seed": settings.get("seed"),
        "data": [Path(str(source)).name],
    }
