"""The schedule is a function of the step; decay spares what it should."""

import pytest
import torch
from torch import nn

from spadnet.models.mim import MaskedImageModel
from spadnet.models.quantizer import SoftQuantizer
from spadnet.models.vit import SpadViT
from spadnet.train.optim import DenseAdamW, OptimSettings, build_adamw, cosine_lr, parameter_groups

SETTINGS = OptimSettings(lr=1.0, final_lr=0.1, warmup_steps=10)


def test_schedule_rises_then_falls_to_the_final_rate() -> None:
    rates = [cosine_lr(step, max_steps=100, settings=SETTINGS) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == pytest.approx(1.0)
    assert rates[10] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.55)
    assert rates[100] == pytest.approx(0.1)
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_every_parameter_is_in_one_group_and_only_weights_decay() -> None:
    vit = SpadViT(in_chans=1, embed_dim=24, depth=1, num_heads=2)
    model = nn.ModuleDict(
        {
            "mim": MaskedImageModel(vit, codebook_size=8),
            "quantizer": SoftQuantizer(8, 16, norm_latent=True),
            "table": nn.Embedding(3, 4),
        }
    )
    frozen = model["mim"].head[0].weight.requires_grad_(False)
    decayed, kept = parameter_groups([model], 0.05)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    grouped = [names[id(p)] for group in (decayed, kept) for p in group["params"]]  # type: ignore[attr-defined]
    assert sorted(grouped) == sorted(set(names.values()) - {names[id(frozen)]})
    spared = {names[id(p)] for p in kept["params"]}  # type: ignore[attr-defined]
    assert {
        "mim.mask_token",
        "mim.vit.pos_embed",
        "mim.vit.cls_token",
        "quantizer.codebook",
        "table.weight",
    } <= spared
    assert all(p.ndim >= 2 for p in decayed["params"])  # type: ignore[attr-defined]
    assert kept["weight_decay"] == 0.0


def test_model_without_weights_to_decay_still_has_an_optimiser() -> None:
    optimizer = build_adamw(nn.LayerNorm(4), settings=SETTINGS)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert len(optimizer.param_groups) == 1


def test_kernels_stored_channels_last_are_updated_alike_and_stay_so() -> None:
    results = []
    for optimizer_class in (torch.optim.AdamW, DenseAdamW):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv3d(3, 8, 3), nn.Conv3d(8, 4, 1))
        model = model.to(memory_format=torch.channels_last_3d)
        optimizer = optimizer_class(model.parameters(), lr=0.1, fused=True)
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.rand(2, 3, 5, 5, 5)).square().sum().backward()
            optimizer.step()
        states = [value for state in optimizer.state.values() for value in state.values()]
        results.append([*model.parameters(), *states])
        kernel = model[0].weight
        assert kernel.shape == (8, 3, 3, 3, 3)
        assert kernel.is_contiguous(memory_format=torch.channels_last_3d)
        assert optimizer.state[kernel]["exp_avg"].shape == kernel.shape
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-7)
