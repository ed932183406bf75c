"""Laws of the prototype loss: what it is least for, what it ignores, and what never divides."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from spadnet.losses.prototypes import TEMPERATURE, prototype_loss

NUM_LABELS = 6


def label_maps(batch: int = 2) -> Tensor:
    """Random labels of small volumes, all of them there."""
    labels = torch.randint(NUM_LABELS, (batch, 4, 5, 6))
    labels[:, 0, 0] = torch.arange(NUM_LABELS)
    return labels.to(torch.uint8)


def loss_of(features: Tensor, labels: Tensor, **options: object) -> Tensor:
    return prototype_loss(features, labels, num_labels=NUM_LABELS, **options)  # type: ignore[arg-type]


def straightforward(features: Tensor, labels: Tensor) -> Tensor:
    """The definition, image by image and label by label."""
    losses = []
    for rows, own in zip(features.flatten(2).transpose(1, 2), labels.flatten(1), strict=True):
        rows = F.normalize(rows, dim=1)
        there = own.unique().tolist()
        prototypes = torch.stack([F.normalize(rows[own == i].mean(0), dim=0) for i in there])
        own_index = torch.tensor([there.index(i) for i in own.tolist()])
        apart = F.cross_entropy(prototypes @ prototypes.T / TEMPERATURE, torch.arange(len(there)))
        losses.append(apart + F.cross_entropy(rows @ prototypes.T / TEMPERATURE, own_index))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("present", [NUM_LABELS, 3, 1])
def test_equals_the_definition_whatever_labels_are_missing(present: int) -> None:
    features, labels = torch.randn(2, 8, 4, 5, 6), label_maps().clamp(max=present - 1)
    labels[1] = labels[1].clamp(min=1 if present > 1 else 0)  # other labels in the other image
    torch.testing.assert_close(loss_of(features, labels), straightforward(features, labels))


def test_renamed_labels_give_the_same_loss() -> None:
    features, labels = torch.randn(2, 8, 4, 5, 6), label_maps().clamp(max=3)
    renamed = torch.randperm(NUM_LABELS)[labels.long()]
    torch.testing.assert_close(loss_of(features, renamed), loss_of(features, labels))


def test_shuffled_positions_and_longer_features_give_the_same_loss() -> None:
    features, labels = torch.randn(2, 8, 4, 5, 6), label_maps()
    order = torch.randperm(4)
    torch.testing.assert_close(
        loss_of(7 * features[:, :, order], labels[:, order]), loss_of(features, labels)
    )


def test_perfect_features_are_near_the_minimum_and_equal_ones_at_chance() -> None:
    labels = label_maps()
    perfect = F.one_hot(labels.long(), NUM_LABELS).movedim(-1, 1).float()
    least = 2 * math.log1p((NUM_LABELS - 1) * math.exp(-1 / TEMPERATURE))
    assert loss_of(perfect, labels).item() == pytest.approx(least, rel=1e-2, abs=1e-6)
    equal = torch.ones(2, 8, 4, 5, 6)
    assert loss_of(equal, labels).item() == pytest.approx(2 * math.log(NUM_LABELS), rel=1e-5)
    assert loss_of(torch.randn(2, 8, 4, 5, 6), labels) > 1.0


def test_a_single_label_gives_zero_and_finite_gradients() -> None:
    features = torch.randn(2, 8, 4, 5, 6, requires_grad=True)
    labels = label_maps()
    labels[0] = 4
    loss = loss_of(features, labels)
    loss.backward()
    assert features.grad is not None
    assert features.grad.isfinite().all()
    assert not features.grad[0].any()
    assert features.grad[1].any()
    assert loss_of(features[:1], labels[:1]).item() == 0


def test_features_of_zero_are_finite() -> None:
    features = torch.zeros(1, 8, 4, 5, 6, requires_grad=True)
    loss = loss_of(features, label_maps(1))
    loss.backward()
    assert loss.isfinite()
    assert features.grad is not None
    assert features.grad.isfinite().all()


def test_two_equal_views_are_one_view() -> None:
    features, labels = torch.randn(2, 8, 4, 5, 6), label_maps()
    torch.testing.assert_close(
        loss_of(features, labels, other_view=features), loss_of(features, labels)
    )


def test_views_may_change_places_and_must_agree() -> None:
    labels = label_maps()
    perfect = F.one_hot(labels.long(), NUM_LABELS).movedim(-1, 1).float()
    rolled = perfect.roll(1, dims=1)  # as perfect, but in other directions
    apart = loss_of(perfect, labels, other_view=rolled)
    torch.testing.assert_close(apart, loss_of(rolled, labels, other_view=perfect))
    assert loss_of(rolled, labels) < 0.01
    assert apart > 10


def test_bfloat16_features_are_computed_in_float32() -> None:
    features, labels = torch.randn(2, 8, 4, 5, 6).bfloat16(), label_maps()
    with torch.autocast("cpu", torch.bfloat16):
        low = loss_of(features, labels)
    assert low.dtype == torch.float32
    assert torch.equal(low, loss_of(features.float(), labels))


def test_wrong_shapes_are_told() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        loss_of(torch.randn(2, 8, 4, 5, 5), label_maps())
    with pytest.raises(ValueError, match="differ in shape"):
        loss_of(torch.randn(2, 8, 4, 5, 6), label_maps(), other_view=torch.randn(2, 7, 4, 5, 6))
