"""Which statistics of an encoder's tokens are the better feature of an image, without a test split.

    python tools/compare_pools.py MODEL ... --data FILE|FOLDER [--size Z Y X] [--few 119]

The cases of training and validation are thrown together and cut into five parts: three train a
linear probe, the fourth chooses its penalty, the fifth is scored, each part once. A second column
has few labels: so many cases are drawn, half as many choose the penalty, the others are scored;
the mean of six draws. MODEL is the folder of an encoder or a name, or ``random`` for random
weights of spad_vit_tiny. These are more cases than a small validation split has, so that the
figures are less a matter of luck.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from spadnet.cli.evaluate_tasks import finetune_config
from spadnet.cli.finetune_data import find_task, preparation, read_split
from spadnet.cli.training import plain
from spadnet.data.task_images import TaskImage
from spadnet.evaluate.probe import fit_probe
from spadnet.evaluate.task_scores import run_in_batches
from spadnet.inference.encoder import load_encoder
from spadnet.losses.scores import score_targets
from spadnet.models.pooling import GlobalPool
from spadnet.models.vit import SpadViT
from spadnet.models.vit_sizes import spad_vit_tiny

POOLS: tuple[GlobalPool, ...] = ("token", "avg", "avgstd")
PARTS = 5
DRAWS = 6


def main() -> None:
    """Compute and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="+", help="folders or names of encoders, or random")
    parser.add_argument("--data", required=True, help="labelled images, as for spadnet finetune")
    parser.add_argument("--size", type=int, nargs=3, help="voxels z, y, x they are stretched to")
    parser.add_argument("--few", type=int, default=119, help="cases of the second column")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads")
    args = parser.parse_args()
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    arguments = [f"data.path={args.data}"]
    if args.size is not None:
        arguments.append(f"data.size=[{','.join(map(str, args.size))}]")
    settings = plain(finetune_config(arguments))
    task = find_task(settings)
    if task.kind != "classification":
        raise SystemExit(f"{args.data}: {task.kind}, and this is for classes")
    print(f"{'encoder':28} {'pool':7} {'all':>7} {f'{args.few} cases':>11}")
    for name in args.models:
        torch.manual_seed(0)
        model = spad_vit_tiny(in_chans=1) if name == "random" else load_encoder(name).model
        rule = preparation(settings["data"], in_chans=model.in_chans, is_map=False)
        images = [image for part in ("train", "val") for image in read_split(task, part, rule=rule)]
        for pool in POOLS:
            x, y = features(model, pool, images), torch.stack([case.target for case in images])
            found = cross_validated(x, y[:, 0].long()), few_labels(x, y[:, 0].long(), args.few)
            print(f"{name[-28:]:28} {pool:7} {found[0]:7.4f} {found[1]:11.4f}", flush=True)


def features(model: SpadViT, pool: GlobalPool, images: Sequence[TaskImage]) -> Tensor:
    """Pooled features of images, [N, C or 2C]."""
    model.reset_classifier(0, pool)
    return run_in_batches(cast(Any, model.eval()), images, model=model)


def cross_validated(x: Tensor, y: Tensor) -> float:
    """AUC of what the probes of all parts say of the cases that they did not see."""
    part = torch.randperm(len(y), generator=torch.Generator().manual_seed(0)) % PARTS
    said = torch.empty(len(y), int(y.max()) + 1)
    for held in range(PARTS):
        chooses = part == (held + 1) % PARTS
        test = part == held
        said[test] = probed(x, y, train=~(chooses | test), chooses=chooses, test=test)
    return auc(y, said)


def few_labels(x: Tensor, y: Tensor, count: int) -> float:
    """Mean AUC over draws of so many training cases."""
    found = []
    for seed in range(DRAWS):
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
        train, chooses, test = order.tensor_split([count, count + max(count // 2, 2)])
        found.append(auc(y[test], probed(x, y, train=train, chooses=chooses, test=test)))
    return sum(found) / len(found)


def probed(x: Tensor, y: Tensor, *, train: Tensor, chooses: Tensor, test: Tensor) -> Tensor:
    """Probabilities [N, K] that a linear probe gives test cases; all cases by index or mask."""
    wanted = torch.nn.functional.one_hot(y, int(y.max()) + 1).float()
    fit = fit_probe(
        x[train],
        wanted[train],
        link="softmax",
        val=x[chooses],
        score=partial(auc, y[chooses]),
    )
    return fit.predict(x[test])


def auc(y: Tensor, said: Tensor) -> float:
    """AUC of probabilities [N, K] of classes [N]."""
    truth: np.ndarray = y[:, None].numpy()
    return score_targets("classification", said.numpy(), truth)["auc"]


if __name__ == "__main__":
    main()
