"""How consistent an encoder is when one volume is seen with thin and with thick slices.

    python tools/eval_consistency.py MODEL [--data FILE|FOLDER|TABLE ...] [--json FILE]

MODEL is the folder of an encoder or of a masked image model. The volumes are those of degree 0
among the data, by default among the embedded images; others are left out and counted. Each is
prepared as the model's contract says, seen at degree 0, and with its slices averaged by 2 and by 4
at degree 1 and 2 (averages of prepared intensities, so that the three differ in nothing else).

- ``cosine``: of the features at degree 0 and at this degree, mean over the volumes. Features of
  any two images may have a high cosine; the mean over pairs of *different* volumes is printed
  beside it, and only what lies above it says something.
- ``retrieval``: share of volumes whose feature at this degree is nearer to their own at degree
  0 than to that of any other volume. Chance is one over the number of volumes: a handful of volumes
  proves little.
- ``baseline_cosine``, ``baseline_retrieval``: the same for a plain ViT that repeats thick slices
  until voxels are isotropic: the same weights at degree 0 on each averaged slice repeated 2 or 4
  times. A SPAD-ViT has one layer that depends on the spacing, whose law makes both the same but
  for rounding, so that these figures should agree. What SPAD saves is the repeated slices; what it
  gains in quality must come from training at all degrees, which figures of one model cannot show:
  compare them with those of a model that was trained at degree 0 alone.

The file is ``{degree: {cosine, retrieval, baseline_cosine, baseline_retrieval}}``.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from spadnet.data.inputs import Item, list_items
from spadnet.data.io import ImageError, read_image
from spadnet.data.samples import list_samples
from spadnet.evaluate.consistency import consistency
from spadnet.inference.encoder import Encoder, load_encoder


def load_volumes(encoder: Encoder, data: Sequence[str]) -> list[Tensor]:
    """Prepared volumes of degree 0; what is left out is said."""
    items = [item for source in data for item in list_items(source)]
    if not data:
        items = [Item(sample.path, sample.name, "samples") for sample in list_samples()]
    volumes, others, broken = [], 0, 0
    for item in items:
        try:
            image = encoder.prepare(read_image(item.path, spacing=item.spacing))
        except ImageError as error:
            broken += 1
            print(f"left out: {error}", file=sys.stderr)
            continue
        if image.spacing.degree(encoder.contract.max_degree) == 0:
            volumes.append(torch.from_numpy(image.array))
        else:
            others += 1
    if not volumes:
        raise ValueError(f"no volume of degree 0 among {len(items)} images")
    left_out = f"{others} images of other degrees and {broken} that cannot be used are left out"
    print(f"{len(volumes)} volumes of degree 0; {left_out}")
    return volumes


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate a model."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", help="folder of an encoder or a masked image model, or a hub id")
    parser.add_argument("--data", nargs="+", default=[], help="files, folders, patterns, tables")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    try:
        encoder = load_encoder(arguments.model)
        volumes = load_volumes(encoder, arguments.data)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    found = consistency(encoder.model, volumes)
    names = ("cosine", "retrieval", "baseline_cosine", "baseline_retrieval")
    print(f"{'degree':<8}" + "".join(f"{name:>20}" for name in names))
    for degree, figures in found.by_degree.items():
        print(f"{degree:<8}" + "".join(f"{value:>20.4f}" for value in figures))
    print(f"chance of retrieval {1 / len(volumes):.4f}")
    if found.different is not None:
        print(f"cosine of different volumes at degree 0 {found.different:.4f}")
    if arguments.json:
        rows = {str(degree): figures._asdict() for degree, figures in found.by_degree.items()}
        try:
            arguments.json.write_text(json.dumps(rows, indent=2) + "\n")
        except OSError as error:
            print(f"error: {arguments.json}: {error.strerror}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
