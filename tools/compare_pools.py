"""Which statistics of an encoder's tokens are the better feature of an image, without a test split.

    python tools/compare_pools.py MODEL ... --data FILE|FOLDER [--size Z Y X] [--few 119]

The cases of training and validation are thrown together and cut into five parts of like classes:
three train a linear probe, the fourth chooses its penalty, the fifth is scored, each part once; the
mean of the five. A second column has few labels: so many cases are drawn, half as many choose the
penalty, the others are scored; the mean of six draws. MODEL is the folder of an encoder for grey
images or a name, or ``random`` for random weights of spad_vit_tiny. Cases count as independent:
this is not for data with several images of a patient.
"""

import argparse
from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from spadnet.cli.evaluate_tasks import finetune_config
from spadnet.cli.finetune_data import find_task, preparation, read_split
from spadnet.cli.training import plain
from spadnet.cli.usage import UsageError
from spadnet.data.task_images import TaskImage
from spadnet.evaluate.probe import fit_probe
from spadnet.evaluate.task_scores import run_in_batches
from spadnet.inference.encoder import load_encoder
from spadnet.losses.scores import score_targets
from spadnet.models.pooling import GlobalPool, pool_tokens, pooled_width
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
    rule = preparation(settings["data"], in_chans=1, is_map=False)
    cases = [image for split in ("train", "val") for image in read_split(task, split, rule=rule)]
    y = torch.stack([case.target for case in cases])[:, 0].long()
    if not 2 * len(task.classes) <= args.few <= len(y) // 2:
        raise SystemExit(f"--few must be {2 * len(task.classes)} to {len(y) // 2}, got {args.few}")
    print(f"{'encoder':28} {'pool':7} {'all':>7} {f'{args.few} cases':>11}")
    for name in args.models:
        torch.manual_seed(0)
        model = spad_vit_tiny(in_chans=1) if name == "random" else load_encoder(name).model
        for pool, x in features(model, cases).items():
            found = cross_validated(x, y), few_labels(x, y, args.few)
            print(f"{name[-28:]:28} {pool:7} {found[0]:7.4f} {found[1]:11.4f}", flush=True)


def features(model: SpadViT, cases: Sequence[TaskImage]) -> dict[GlobalPool, Tensor]:
    """Features of images, [N, C or 2C], by pool."""

    def pooled(x: Tensor, degree: int) -> Tensor:
        tokens, prefix = model.forward_features(x, degree), model.num_prefix_tokens
        return torch.cat([pool_tokens(tokens, p, num_prefix_tokens=prefix) for p in POOLS], dim=1)

    found = run_in_batches(pooled, cases, model=model.eval())
    widths = [pooled_width(pool, model.embed_dim) for pool in POOLS]
    return dict(zip(POOLS, found.split(widths, dim=1), strict=True))


def spread_out(y: Tensor, *, seed: int) -> Tensor:
    """Cases in an order whose every stretch has each class in its share: places in [0, 1), [N]."""
    generator = torch.Generator().manual_seed(seed)
    place = torch.empty(len(y))
    for label in y.unique():
        own = torch.nonzero(y == label)[:, 0]
        order = own[torch.randperm(len(own), generator=generator)]
        place[order] = (torch.arange(len(own)) + 0.5) / len(own)
    return place


def cross_validated(x: Tensor, y: Tensor) -> float:
    """Mean AUC of the parts, each scored by a probe that did not see it."""
    part = (spread_out(y, seed=0) * PARTS).long()
    found = []
    for held in range(PARTS):
        test, chooses = part == held, part == (held + 1) % PARTS
        found.append(
            auc(y[test], probed(x, y, train=~(chooses | test), chooses=chooses, test=test))
        )
    return sum(found) / PARTS


def few_labels(x: Tensor, y: Tensor, count: int) -> float:
    """Mean AUC over draws of so many training cases."""
    found = []
    for seed in range(DRAWS):
        order = spread_out(y, seed=seed).argsort(stable=True)
        train, chooses, test = order.tensor_split([count, count + count // 2])
        found.append(auc(y[test], probed(x, y, train=train, chooses=chooses, test=test)))
    return sum(found) / DRAWS


def probed(x: Tensor, y: Tensor, *, train: Tensor, chooses: Tensor, test: Tensor) -> Tensor:
    """Probabilities [N, K] that a linear probe gives test cases; all cases by index or mask."""
    fit = fit_probe(
        x[train],
        F.one_hot(y, int(y.max()) + 1)[train].float(),
        link="softmax",
        val=x[chooses],
        score=partial(auc, y[chooses]),
    )
    return fit.predict(x[test])


def auc(y: Tensor, said: Tensor) -> float:
    """AUC of probabilities [N, K] of classes [N]."""
    return score_targets("classification", said.numpy(), y[:, None].numpy())["auc"]


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError, UsageError) as problem:
        raise SystemExit(f"error: {problem}") from problem
