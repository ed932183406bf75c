"""Linear probe and k-NN: what they find, what they choose, and that both are exact."""

import pytest
import torch
import torch.nn.functional as F

from spadnet.evaluate.knn import fit_knn
from spadnet.evaluate.probe import Scaling, fit_probe


def blobs(count: int, *, seed: int, width: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Features whose first two entries tell three classes, the others nothing."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.arange(count) % 3
    x = torch.randn(count, width, generator=generator)
    x[:, :2] += 4 * F.one_hot(label, 3)[:, :2].float()
    return 100 * x + 7, F.one_hot(label, 3).float()


def accuracy(y: torch.Tensor) -> "object":
    return lambda found: float((found.argmax(1) == y.argmax(1)).float().mean())


def test_both_learn_what_can_be_learnt() -> None:
    x, y = blobs(300, seed=0)
    val, val_y = blobs(90, seed=1)
    test, test_y = blobs(300, seed=2)
    score = accuracy(val_y)
    probe = fit_probe(x, y, link="softmax", val=val, score=score)  # type: ignore[arg-type]
    neighbours = fit_knn(x, y, val=val, others=[test], score=score)  # type: ignore[arg-type]
    for found in (probe.predict(test), neighbours.prediction[0]):
        assert torch.allclose(found.sum(1), torch.ones(300), atol=1e-5)
        assert (found.argmax(1) == test_y.argmax(1)).float().mean() > 0.9


def test_probe_minimises_its_loss() -> None:
    x, y = blobs(60, seed=0)
    seen: list[torch.Tensor] = []
    penalty = 0.05
    fit_probe(
        x,
        y,
        link="softmax",
        val=x,
        score=lambda found: float(seen.append(found) or 0.0),  # type: ignore[func-returns-value]
        penalties=[penalty],
    )
    z = Scaling.of(x)(x)
    # At the minimum the gradient of the mean loss is that of the penalty: both follow from p - y.
    weight = -(z.T @ (seen[0] - y)) / (len(x) * 2 * penalty)
    again = (z @ weight).detach()
    bias = (seen[0].log() - again).mean(0)
    assert torch.allclose((again + bias).softmax(1), seen[0], atol=2e-3)


def test_more_features_than_cases_changes_nothing() -> None:
    x, y = blobs(12, seed=0, width=6)
    wide = torch.cat([x] * 4, 1)  # 24 features of which 6 differ: the penalty weighs a quarter
    results = []
    for features, penalty in ((x, 0.1), (wide, 0.4)):
        fitted = fit_probe(
            features,
            y,
            link="softmax",
            val=features,
            score=lambda found: 0.0,
            penalties=[penalty],
        )
        results.append(fitted.predict(features))
    assert torch.allclose(results[0], results[1], atol=1e-3)


def test_ridge_finds_values_in_their_own_unit() -> None:
    x, _ = blobs(200, seed=0)
    y = 3 * x[:, :1] - 1000
    fitted = fit_probe(x, y, link="identity", val=x, score=lambda v: -float((v - y).abs().mean()))
    assert fitted.chosen == 1e-5
    assert torch.allclose(fitted.predict(x), y, rtol=1e-2, atol=1.0)


def test_validation_chooses_and_ties_go_to_the_simpler() -> None:
    x, y = blobs(30, seed=0)
    chosen = fit_probe(x, y, link="softmax", val=x, score=lambda found: 1.0).chosen
    assert chosen == 10
    assert fit_knn(x, y, val=x, others=[], score=lambda found: 1.0).chosen == 1
    assert fit_knn(x, y, val=x, others=[], score=lambda found: float("nan")).chosen == 1
    # Itself is each case's nearest: one neighbour repeats the labels.
    (own,) = fit_knn(x, y, val=x, others=[x], score=lambda found: 1.0).prediction
    assert torch.allclose(own, y, atol=1e-6)


def test_features_that_do_not_vary_are_left_out() -> None:
    x = torch.tensor([[1.0, 5.0], [2.0, 5.0], [4.0, 5.0]])
    z = Scaling.of(x)(x)
    assert z[:, 1].tolist() == pytest.approx([0, 0, 0])
    assert Scaling.of(x)(torch.tensor([[1.0, 6.0]]))[0, 1].abs() < 1e-6
