"""Put trained weights into the package: float16, with card and golden outputs.

python tools/ship_weights.py FOLDER NAME     writes spadnet/weights/shipped/NAME

tools/shipped_facts.yaml tells what the card says of the training beside what the folder knows: data
(a list of names with their licences), compute, figures, limits. All shipped weights together must
stay below 25 MB.
"""

import argparse
import copy
from pathlib import Path

import torch
import yaml

from spadnet.weights.hub import load_checkpoint, save_pretrained
from spadnet.weights.source import SHIPPED

MAX_BYTES = 25_000_000
KEPT = ("stage", "objective", "steps", "seed", "in_plane_mm", "degrees")
"""What the card keeps of the facts that a run wrote; names of runs and folders are left out."""


def main() -> None:
    """Round, save and load again."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="checkpoint folder")
    parser.add_argument("name", help="of the size, such as spad_vit_tiny")
    parser.add_argument("--facts", type=Path, default=Path(__file__).parent / "shipped_facts.yaml")
    args = parser.parse_args()
    loaded = load_checkpoint(args.folder)
    own = loaded.config["training"]
    told = yaml.safe_load(args.facts.read_text())[args.name]
    training = {key: own[key] for key in KEPT if key in own} | told
    model = copy.deepcopy(loaded.model).to(torch.float16)
    folder = save_pretrained(model, SHIPPED / args.name, name=args.name, training=training)
    load_checkpoint(folder)
    total = sum(path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file())
    if total > MAX_BYTES:
        raise SystemExit(f"all shipped weights take {total / 1e6:.1f} MB, more than 25 MB")
    print(f"{folder}: all shipped weights take {total / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
