"""The schedule is a function of the step; decay spares what it should."""

from typing import Any

import pytest
import torch
from torch import nn

from spadnet.models.mim import MaskedImageModel
from spadnet.models.quantizer import SoftQuantizer
from spadnet.models.tokenizer import spad_vt_tiny
from spadnet.models.vit import SpadViT
from spadnet.train.optim import (
    DenseAdamW,
    OptimSettings,
    build_adamw,
    check_settings,
    cosine_lr,
    learning_rate,
    parameter_groups,
    set_lr,
)

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


@pytest.mark.parametrize("schedule", ["cosine", "steps", "tanh", "poly"])
def test_rates_rise_to_the_highest_and_fall_whichever_way(schedule: Any) -> None:
    settings = SETTINGS._replace(schedule=schedule)
    rates = [learning_rate(step, max_steps=100, settings=settings) for step in range(101)]
    assert rates[:10] == sorted(rates[:10])
    assert [max(rates), rates[10]] == pytest.approx([1.0, 1.0])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[100] == pytest.approx(0.01 if schedule == "steps" else 0.1, rel=0.05)
    # A function of the step alone, in whatever order it is asked.
    assert learning_rate(50, max_steps=100, settings=settings) == rates[50]


def test_rate_falls_to_a_tenth_after_half_and_three_quarters() -> None:
    settings = OptimSettings(lr=1e-2, schedule="steps")
    rates = [learning_rate(step, max_steps=100, settings=settings) for step in (0, 49, 50, 75)]
    assert rates == pytest.approx([1e-2, 1e-2, 1e-3, 1e-4])


def test_settings_out_of_range_are_refused() -> None:
    for change, message in (
        ({"schedule": "cosin"}, "unknown schedule 'cosin'; did you mean 'cosine'"),
        ({"layer_decay": 0.0}, "layer_decay must lie in"),
        ({"ema": 1.0}, "ema in"),
    ):
        with pytest.raises(ValueError, match=message):
            check_settings(SETTINGS._replace(**change))  # type: ignore[arg-type]


def test_layers_of_a_masked_image_model_decay_and_a_tokenizer_has_none() -> None:
    vit = SpadViT(in_chans=1, embed_dim=12, depth=2, num_heads=1, pos_grid=(1, 2, 2))
    model = MaskedImageModel(vit, codebook_size=8)
    optimizer = build_adamw(model, settings=SETTINGS._replace(layer_decay=0.5))
    set_lr(optimizer, 1.0)
    rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert len(rate) == len(list(model.parameters()))
    head, stem = model.head[0].weight, vit.patch_embed.proj.weight
    blocks = [rate[id(block.attn.proj.weight)] for block in vit.blocks]  # type: ignore[union-attr]
    assert rate[id(head)] == rate[id(model.mask_token)] == 1
    assert [rate[id(stem)], *blocks] == [0.125, 0.25, 0.5]
    with pytest.raises(ValueError, match="a Tokenizer has no layers to decay over"):
        build_adamw(spad_vt_tiny(), settings=SETTINGS._replace(layer_decay=0.5))
