"""The data set of synthetic images: pure in seed and index, and a network trains from it."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from spadnet.spacing import Spacing
from spadnet.synthesis import SyntheticDataset, label_maps

SIZE = (4, 16, 16)


def ball(depth=12, value=3):
    place = torch.arange(24) - 11.5
    return ((place[:, None] ** 2 + place**2 < 64).long() * value).expand(depth, 24, 24)


def maps():
    return label_maps(
        [ball(value=3), ball(value=9)], spacings=[Spacing(2, 1, 1)] * 2, names=["a", "b"]
    )


@pytest.mark.parametrize("source", ["fields", "shapes", "mixed", "labels"])
@pytest.mark.parametrize("contrast", ["same", "random"])
def test_item_depends_on_seed_and_index_only(source, contrast):
    given = maps() if source == "labels" else ()
    settings = {"source": source, "label_maps": given, "num_views": 2, "contrast": contrast}
    dataset = SyntheticDataset(5, size=SIZE, seed=3, **settings)
    again = SyntheticDataset(9, size=SIZE, seed=3, **settings)
    loader = DataLoader(again, batch_size=3)
    batches = list(loader)
    for index in (4, 0, 2):
        item = dataset[index]
        for name, value in item._asdict().items():
            batched = getattr(batches[index // 3], name)[index % 3]
            assert torch.equal(value, batched), name
    other = SyntheticDataset(5, size=SIZE, seed=4, **settings)
    assert not torch.equal(other[0].image, dataset[0].image)
    assert not torch.equal(dataset[1].image, dataset[0].image)


def test_workers_give_the_same_batches():
    dataset = SyntheticDataset(4, size=(1, 16, 16), num_views=1)
    alone = list(DataLoader(dataset, batch_size=2))
    shared = list(DataLoader(dataset, batch_size=2, num_workers=1))
    for first, second in zip(alone, shared, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("degree", range(6))
def test_spacing_has_the_wanted_degree(degree):
    size = (1 if degree == 5 else 2, 16, 16)
    dataset = SyntheticDataset(6, size=size, degree=degree)
    spacings = [Spacing(*dataset[index].spacing.tolist()) for index in range(6)]
    assert {spacing.degree() for spacing in spacings} == {degree}
    assert len(set(spacings)) == 6


def test_a_single_slice_is_2d_by_default_and_others_are_isotropic():
    assert Spacing(*SyntheticDataset(1, size=(1, 8, 8))[0].spacing.tolist()).degree() == 5
    assert Spacing(*SyntheticDataset(1, size=(2, 8, 8))[0].spacing.tolist()).degree() == 0


def test_views_get_worse():
    dataset = SyntheticDataset(8, size=(8, 32, 32), num_views=3, severities=(0.0, 1.0))
    error = torch.zeros(3)
    for index in range(8):
        item = dataset[index]
        assert item.views.shape == (3, 1, 8, 32, 32)
        assert 0 <= item.views.min() < item.views.max() <= 1
        error += (item.views - item.clean).abs().mean((1, 2, 3, 4))
    assert error[0] < error[1] < error[2]


def test_views_may_have_another_contrast_but_the_same_anatomy():
    item = SyntheticDataset(1, size=(8, 32, 32), num_views=2, severities=(0, 0), contrast="random")[
        0
    ]
    present = item.labels.unique().tolist()
    means = torch.stack(
        [
            torch.stack([view[0][item.labels == label].mean() for label in present])
            for view in item.views
        ]
    )
    assert (means[0] - means[1]).abs().max() > 0.1
    for view in item.views:  # most of what is seen is explained by the labels
        inside = (
            sum(
                view[0][item.labels == label].var(correction=0) * (item.labels == label).sum()
                for label in present
            )
            / item.labels.numel()
        )
        assert inside < 0.5 * view.var(correction=0)


def test_label_maps_give_their_own_grid_and_labels():
    dataset = SyntheticDataset(6, source="labels", label_maps=maps())
    seen = set()
    for index in range(6):
        item = dataset[index]
        assert item.image.shape == (1, 12, 24, 24)
        assert item.spacing.tolist() == [2, 1, 1]
        values = torch.tensor(dataset.label_map(index).values)
        seen |= set(values[item.labels.long()].unique().tolist())
    assert seen == {0, 3, 9}
    flat = SyntheticDataset(1, source="labels", label_maps=maps(), degree=5)[0]
    assert flat.image.shape[1] == 1
    thin = SyntheticDataset(1, source="labels", label_maps=maps(), spacing=Spacing(1, 1, 1))[0]
    assert thin.labels.shape == (24, 24, 24)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"num": -1}, "-1"),
        ({"source": "brains"}, "brains"),
        ({"source": "labels"}, "label maps"),
        ({"label_maps": [None]}, "label maps"),
        ({"size": None}, "size"),
        ({"degree": 6}, "6"),
        ({"degree": 5}, "single slice"),
        ({"spacing": Spacing(5, 1, 1), "degree": 1}, "degree 2"),
        ({"spacing": Spacing(-1, 1, 1)}, "-1"),
        ({"severities": (0.1, 1.5)}, "1.5"),
        ({"contrast": "none"}, "none"),
        ({"num_labels": 1}, "num_labels"),
    ],
)
def test_wrong_arguments_are_named(arguments, named):
    with pytest.raises(ValueError, match=named):
        SyntheticDataset(**({"num": 2, "size": SIZE} | arguments))


@pytest.mark.parametrize("index", [2, -1])
def test_there_is_nothing_beyond_the_end(index):
    with pytest.raises(IndexError, match=str(index)):
        SyntheticDataset(2, size=SIZE)[index]


def test_a_network_trains_from_it_directly():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 3, padding=1))
    losses = []
    for batch in DataLoader(SyntheticDataset(96, size=(1, 12, 12)), batch_size=4):
        loss = F.mse_loss(model(batch.image[:, :, 0]), batch.clean[:, :, 0])
        model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.1 * parameter.grad
        losses.append(loss.item())
    assert sum(losses[-6:]) < 0.6 * sum(losses[:6])
