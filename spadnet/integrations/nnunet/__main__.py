"""``python -m spadnet.integrations.nnunet``: nnU-Net's commands with spadnet's trainer known."""

import importlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from spadnet.integrations.nnunet.plans import spad_plans
from spadnet.integrations.nnunet.trained import save_trained

TRAINERS = Path(__file__).parent / "trainers"
TRAINER = "nnUNetTrainerSpadnet"
SEARCH_PATH = "nnUNet_extTrainer"

_ENTRIES = {
    "train": ("nnunetv2.run.run_training", "run_training_entry"),
    "predict": ("nnunetv2.inference.predict_from_raw_data", "predict_entry_point"),
}

USAGE = f"""\
usage: python -m spadnet.integrations.nnunet COMMAND ...

  train DATASET CONFIGURATION FOLD ...    nnUNetv2_train with -tr {TRAINER}
  predict -i IN -o OUT ...                nnUNetv2_predict with -tr {TRAINER}
  plan PLANS.json OUT.json [ENCODER]      plans that name the SPAD-UNet, for -p
  save CHECKPOINT.pth FOLDER              what was trained, as a checkpoint folder of spadnet
  trainers                                folder for the variable {SEARCH_PATH}

SPADNET_ENCODER=FOLDER names a pretrained SPAD-UNet to start from; with -tr {TRAINER}Vit, a
SPAD-ViT."""


def main(arguments: Sequence[str]) -> int:
    """Run one command and return the exit status."""
    match list(arguments):
        case ["trainers"]:
            print(TRAINERS)
        case ["plan", source, target, *encoder] if len(encoder) <= 1:
            note = encoder[0] if encoder else None
            return _one_line(lambda: write_plans(Path(source), Path(target), encoder=note))
        case ["save", checkpoint, folder]:
            return _one_line(lambda: save_trained(Path(checkpoint), Path(folder)))
        case [("train" | "predict") as command, *rest]:
            return _run(command, rest)
        case ["--help" | "-h"]:
            print(USAGE)
        case _:
            print(USAGE, file=sys.stderr)
            return 2
    return 0


def _one_line(act: Callable[[], object]) -> int:
    """Act, and say in one line what was wrong."""
    try:
        act()
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def write_plans(source: Path, target: Path, *, encoder: str | None) -> None:
    """Write plans that name the SPAD-UNet; nothing is left half-written.

    Args:
        source: A plans file of nnU-Net.
        target: Where to; nnU-Net knows the plans by the name of the file, ``-p NAME``.
        encoder: Pretrained SPAD-UNet that the trainer shall start from.

    Raises:
        ValueError: If the source is no plans file, or plans what no SPAD-UNet can replace.
        OSError: If a file cannot be read or written.
    """
    try:
        plans = json.loads(source.read_text(encoding="utf-8"))
        changed = spad_plans(plans, encoder=encoder) | {"plans_name": target.stem}
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"{source}: not a plans file of nnU-Net v2: {error!r}") from error
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    half = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        half.write_text(json.dumps(changed, indent=4) + "\n", encoding="utf-8")
        half.replace(target)
    finally:
        half.unlink(missing_ok=True)


def _run(command: str, arguments: list[str]) -> int:
    """Run a command of nnU-Net that finds spadnet's trainer."""
    paths = [str(TRAINERS), *filter(None, os.environ.get(SEARCH_PATH, "").split(os.pathsep))]
    os.environ[SEARCH_PATH] = os.pathsep.join(dict.fromkeys(paths))
    module, name = _ENTRIES[command]
    try:
        entry = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name != "nnunetv2":
            raise
        print("nnunetv2 is not installed: pip install 'spadnet[nnunet]'", file=sys.stderr)
        return 1
    if "-tr" not in arguments and "--help" not in arguments and "-h" not in arguments:
        arguments = [*arguments, "-tr", TRAINER]
    sys.argv = [f"nnUNetv2_{command}", *arguments]
    entry()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
