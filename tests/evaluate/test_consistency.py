"""Consistency over slice thickness: what it averages, compares and counts."""

import pytest
import torch
from torch import Tensor, nn

from spadnet.evaluate import consistency as module
from spadnet.evaluate.consistency import average_slices, consistency
from spadnet.models.vit import SpadViT


def tiny_vit() -> SpadViT:
    vit = SpadViT(in_chans=1, embed_dim=16, depth=2, num_heads=2, pos_grid=(2, 2, 2)).eval()
    for parameter in vit.parameters():
        nn.init.normal_(parameter, std=0.3)
    return vit


def test_slices_are_averaged() -> None:
    volume = torch.arange(8.0).view(1, 8, 1, 1).expand(1, 8, 2, 2)
    assert average_slices(volume, 4)[0, :, 0, 0].tolist() == [1.5, 5.5]
    assert average_slices(volume, 1).equal(volume)


def test_volumes_that_do_not_change_along_depth_are_seen_alike() -> None:
    """Averaging changes nothing then, and the law of SPAD convolutions makes all degrees equal."""
    volumes = [torch.rand(1, 1, 40, 33).expand(1, 20, 40, 33) for _ in range(3)]
    report = consistency(tiny_vit(), volumes)
    assert sorted(report.by_degree) == [0, 1, 2]
    for figures in report.by_degree.values():
        assert figures == (pytest.approx(1), 1, pytest.approx(1), 1)
    assert report.different is not None
    assert report.different < 1


def test_baseline_is_the_same_for_a_network_that_keeps_the_law() -> None:
    volumes = [torch.rand(1, 32, 32, 32) for _ in range(3)]
    for figures in consistency(tiny_vit(), volumes).by_degree.values():
        assert figures.cosine == pytest.approx(figures.baseline_cosine, abs=1e-5)
        assert figures.retrieval == figures.baseline_retrieval


def test_network_that_forgets_at_thick_slices_is_found_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    feature = module._feature

    def forgets(model: SpadViT, volume: Tensor, degree: int) -> Tensor:
        return feature(model, torch.zeros_like(volume) if degree == 2 else volume, degree)

    monkeypatch.setattr(module, "_feature", forgets)
    volumes = [torch.rand(1, 1, 32, 32).expand(1, 16, 32, 32) for _ in range(4)]
    by_degree = consistency(tiny_vit(), volumes).by_degree
    assert by_degree[1].retrieval == 1
    assert by_degree[2].retrieval <= 0.5  # all features equal: at most a few are nearest
    assert by_degree[2].cosine < by_degree[1].cosine
    assert by_degree[2].baseline_retrieval == 1


def test_large_volumes_are_seen_about_their_centre() -> None:
    volume = torch.zeros(1, 20 * 16, 16, 16)
    volume[:, 96:224] = torch.rand(1, 128, 16, 16)
    vit = tiny_vit()
    whole, centre = consistency(vit, [volume]), consistency(vit, [volume[:, 96:224]])
    for degree, figures in whole.by_degree.items():
        assert figures == pytest.approx(centre.by_degree[degree])
    assert whole.different is None
