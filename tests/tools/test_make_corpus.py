"""Radiographs look as X-rays do, shapes are turned and cut labels, and both come again."""

from pathlib import Path

import numpy as np
import pytest
import torch

TOOLS = Path(__file__).resolve().parents[2] / "tools"


@pytest.fixture(autouse=True)
def tools(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the tool importable."""
    monkeypatch.syspath_prepend(str(TOOLS))


def chest() -> tuple[torch.Tensor, torch.Tensor]:
    """A body of water with two lungs and a dense spine: attenuation, and where air is."""
    attenuation = torch.zeros(40, 40, 48)
    attenuation[:, 4:36, 4:44] = 0.02
    air = torch.zeros_like(attenuation)
    for columns in (slice(8, 20), slice(28, 40)):
        air[8:32, 8:32, columns] = 1
        attenuation[8:32, 8:32, columns] = 0.002
    attenuation[:, 26:34, 22:26] = 0.05
    return attenuation, air


def test_lungs_are_dark_and_the_spine_between_them_is_bright() -> None:
    import make_corpus

    frontal = 0
    for seed in range(12):
        picture = make_corpus.radiograph(*chest(), np.random.default_rng(seed))
        again = make_corpus.radiograph(*chest(), np.random.default_rng(seed))
        assert torch.equal(picture, again)
        assert min(picture.shape) >= 96
        assert 0 <= picture.min() < 0.2 < 0.8 < picture.max() <= 1
        height, width = picture.shape
        row = picture[height // 2 - 4 : height // 2 + 4].mean(0)
        middle = row[2 * width // 5 : 3 * width // 5].max()
        left, right = (row[: 2 * width // 5].min(), row[3 * width // 5 :].min())
        frontal += int(middle > max(left, right) + 0.3)
    assert 6 <= frontal < 12  # three in four are from the front


def test_rotations_are_rotations() -> None:
    import make_corpus

    turn = make_corpus.rotation(np.array([0.3, -0.7, 1.1]))
    assert torch.allclose(turn @ turn.T, torch.eye(3), atol=1e-6)
    assert torch.det(turn) == pytest.approx(1.0, abs=1e-6)
    quarter = make_corpus.rotation(np.array([np.pi / 2, 0, 0]))
    assert torch.allclose(quarter @ torch.tensor([1.0, 0, 0]), torch.tensor([0, 1.0, 0]), atol=1e-6)


def test_shapes_are_as_large_as_their_labels() -> None:
    """A ball of 20 mm in voxels of 2 x 1 x 1 mm stays a ball, whatever the turn."""
    import make_corpus

    z, y, x = np.ogrid[:20, :40, :40]
    mask = ((z - 10) * 2) ** 2 + (y - 20) ** 2 + (x - 20) ** 2 < 100
    places = np.argwhere(mask)
    first, stop = places.min(0), places.max(0) + 1
    rng = np.random.default_rng(0)
    cube = make_corpus._cube(mask, first, stop, (2.0, 1.0, 1.0), 20.0, rng)
    assert cube.shape == (64, 64, 64)
    extents = [int(cube.any(dim=a).any(dim=b).sum()) for a, b in ((1, 1), (0, 1), (0, 0))]
    whole = [n for n in extents if n < 64]
    assert max(whole) - min(whole) <= 0.25 * max(whole)


def test_what_the_package_holds_out_is_no_part() -> None:
    import make_corpus

    from spadnet.data.samples import list_samples

    held_out = {make_corpus.stem_of(sample.name) for sample in list_samples("heldout")}
    assert "ct_head_2.5mm" in held_out
    sources = (*make_corpus.IMAGES, *make_corpus.CHESTS, *make_corpus.LABELS)
    used = {make_corpus.stem_of(name) for name in sources}
    assert not used & held_out
    assert not {name.removesuffix("_organs") for name in used} & held_out
