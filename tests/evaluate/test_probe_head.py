"""A head that starts as a probe says what the probe says, of every kind of target."""

import pytest
import torch
from torch import Tensor, nn

from spadnet.data.task_images import TaskImage
from spadnet.evaluate.probe_head import put_probe
from spadnet.evaluate.task_scores import predict_targets
from spadnet.losses.scores import CHOOSING
from spadnet.losses.targets import OutputKind, num_outputs
from spadnet.spacing import Spacing
from spadnet.train.finetune_task import target_statistics


class Brightness(nn.Module):
    """Features are the means of an image's halves, tiny and far from 0; then a linear head."""

    in_chans = 1

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.01))
        self.head = nn.Linear(2, width)

    def forward(self, x: Tensor, degree: int | None = None) -> Tensor:
        """Of images [B, 1, 1, H, W]."""
        halves = torch.stack([part.mean((1, 2, 3, 4)) for part in x.chunk(2, dim=4)], 1)
        out: Tensor = self.head(self.scale * halves + 3)
        return out


def cases(kind: OutputKind, count: int, *, seed: int) -> list[TaskImage]:
    """Images of two halves, and targets that their brightness tells."""
    generator = torch.Generator().manual_seed(seed)
    halves = torch.rand(count, 2, generator=generator)
    targets = {
        "classification": (halves[:, :1] > halves[:, 1:]).float(),
        "multi_label": (halves > 0.5).float(),
        "ordinal": (halves[:, :1] * 3).floor(),
        "regression": 500 + 40 * halves,
    }
    found = []
    for index in range(count):
        image = halves[index].repeat_interleave(2).expand(1, 1, 4, 4).half()
        target = targets[kind][index]
        found.append(TaskImage(str(index), image, target, 5, Spacing(1.0, 1.0, 1.0)))
    return found


@pytest.mark.parametrize("kind", ["classification", "multi_label", "ordinal", "regression"])
def test_head_is_the_probe(kind: OutputKind) -> None:
    train, val, test = (cases(kind, n, seed=seed) for seed, n in enumerate((80, 40, 60)))
    count = {"classification": 2, "ordinal": 3}.get(kind, 2)
    model = Brightness(num_outputs(kind, count)).train()
    statistics = target_statistics([c.target for c in train]) if kind == "regression" else {}
    before = predict_targets(model, test, kind=kind, **statistics).scores(kind)[CHOOSING[kind]]
    fit = put_probe(model, train, val, kind=kind, **statistics)
    assert model.training
    found = predict_targets(model, test, kind=kind, **statistics)
    # Nearly perfect, though the features differ in the fourth digit alone.
    assert found.scores(kind)[CHOOSING[kind]] > max(0.9, before)
    features = torch.stack([0.01 * c.image.float().mean((0, 1, 2)) + 3 for c in test])[:, ::2]
    said = fit.predict(features)
    if kind == "ordinal":
        said = 1 - said[:, 0]
        found_values = torch.from_numpy(found.values)[:, 0]
    else:
        found_values = torch.from_numpy(found.values)
    assert torch.allclose(found_values, said, rtol=1e-3, atol=0.01)


def test_one_case_is_enough() -> None:
    train = cases("classification", 1, seed=0)
    model = Brightness(2)
    put_probe(model, train, train, kind="classification")
    assert torch.isfinite(model.head.weight).all()


def test_a_failure_leaves_a_whole_model() -> None:
    class Failing(Brightness):
        def forward(self, x: Tensor, degree: int | None = None) -> Tensor:
            raise RuntimeError("out of memory")

    train = cases("classification", 4, seed=0)
    model = Failing(2).train()
    head = model.head
    with pytest.raises(RuntimeError, match="out of memory"):
        put_probe(model, train, train, kind="classification")
    assert model.head is head
    assert model.training


def test_features_that_are_not_finite_are_named() -> None:
    train = cases("classification", 4, seed=0)
    bad = train[2]._replace(image=torch.full((1, 1, 4, 4), torch.nan).half())
    with pytest.raises(ValueError, match=f"{bad.key}: the encoder's features are not finite"):
        put_probe(Brightness(2), [*train[:2], bad], train, kind="classification")
