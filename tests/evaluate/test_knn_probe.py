"""Neighbours vote; an encoder's probe takes cases of any size."""

import torch

from spadnet.data.task_images import TaskImage
from spadnet.evaluate.knn_probe import knn_accuracy, probe_accuracy
from spadnet.models.vit import SpadViT
from spadnet.spacing import Spacing


def test_neighbours_vote_by_similarity() -> None:
    features = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    labels = torch.tensor([0, 0, 1])
    queries = torch.tensor([[2.0, 0.1], [0.1, 3.0], [0.1, 3.0]])
    truth = torch.tensor([0, 1, 0])
    assert knn_accuracy(features, labels, queries, truth, neighbours=1) == 2 / 3
    # All three vote; the near one outweighs the two that are far.
    assert knn_accuracy(features, labels, queries, truth, neighbours=20) == 2 / 3


def case(level: float, label: int, size: int) -> TaskImage:
    image = torch.rand(1, 1, size, size) * 0.1 + level
    return TaskImage(f"{label}", image.half(), torch.tensor([float(label)]), 5, Spacing.planar())


def test_dark_and_bright_are_told_apart() -> None:
    vit = SpadViT(in_chans=3, embed_dim=24, depth=1, num_heads=2).train()
    train = [case(0.8 * label, label, size) for label in (0, 1) for size in (28, 32, 40)]
    val = [case(0.8 * label, label, 32) for label in (1, 0, 1)]
    assert probe_accuracy(vit, train, val, neighbours=3, batch_size=2) == 1.0
    assert vit.training
