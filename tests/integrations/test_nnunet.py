"""SPAD-UNets take the place of nnU-Net's plain ones; with nnU-Net installed, they equal them."""

import copy
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunet_plans import THICK, build, plain, plans
from torch import Tensor, nn

from spadnet.integrations.nnunet import __main__ as command
from spadnet.integrations.nnunet.network import PlannedUNet
from spadnet.integrations.nnunet.plans import NETWORK, spad_architecture, spad_plans, spad_strides
from spadnet.models.unet_parts import Stage

needs_nnunet = pytest.mark.skipif(
    importlib.util.find_spec("nnunetv2") is None,
    reason="nnunetv2 is not installed: pip install spadnet[nnunet]",
)


# --- plans ---


def test_plans_name_the_network_and_its_degree() -> None:
    before = plans()
    changed = spad_plans(before, encoder="folder")
    assert before == plans(), "the plans given are left as they are"
    thick = changed["configurations"]["3d_fullres"]
    assert thick["architecture"]["network_class_name"] == NETWORK
    assert thick["architecture"]["arch_kwargs"]["degree"] == 2
    assert thick["architecture"]["arch_kwargs"]["strides"] == THICK
    assert thick["patch_size"] == [4, 32, 24]
    assert changed["configurations"]["2d"]["architecture"]["arch_kwargs"]["degree"] is None
    assert changed["configurations"]["3d_cascade_fullres"] == {
        "inherits_from": "3d_fullres",
        "previous_stage": "3d_lowres",
    }
    assert changed["spadnet_encoder"] == "folder"
    assert spad_plans(changed) == changed == json.loads(json.dumps(changed))


@pytest.mark.parametrize(
    ("spacing", "degree", "last"),
    [
        ((1.0, 1.0, 1.0), 0, [[2, 2, 2]] * 4),
        ((0.5, 1.0, 1.0), 0, [[2, 2, 2]] * 4),
        ((2.0, 1.0, 1.0), 1, [[1, 2, 2], *[[2, 2, 2]] * 3]),
        ((5.0, 0.8, 0.7), 2, [*[[1, 2, 2]] * 2, *[[2, 2, 2]] * 2]),
        ((400.0, 1.0, 1.0), 5, [[1, 2, 2]] * 4),
    ],
)
def test_strides_follow_the_spacing(
    spacing: tuple[float, ...], degree: int, last: list[list[int]]
) -> None:
    architecture, _ = spad_architecture(
        plain([*THICK, [2] * 3]), spacing=spacing, patch_size=[64] * 3
    )
    assert architecture["arch_kwargs"]["degree"] == degree
    assert architecture["arch_kwargs"]["strides"] == [[1, 1, 1], *last]


@pytest.mark.parametrize(
    ("patch", "expected", "levels"),
    [
        ((48, 192, 192), [48, 192, 192], 6),  # nnU-Net itself would no longer halve 6 slices
        ((20, 256, 224), [24, 256, 224], 6),  # a fifth more voxels
        ((10, 64, 64), [12, 64, 64], 5),  # 32 or 16 slices would be too many
    ],
)
def test_short_axes_cost_a_little_of_the_patch_or_a_level(
    patch: tuple[int, ...], expected: list[int], levels: int
) -> None:
    spacing = {48: (3.0, 0.76, 0.76), 20: (5.0, 1.2, 1.2), 10: (5.0, 1.2, 1.2)}[patch[0]]
    architecture, grown = spad_architecture(
        plain([*THICK, [2, 2, 2], [1, 2, 2]]), spacing=spacing, patch_size=patch
    )
    arguments = architecture["arch_kwargs"]
    assert grown == expected
    assert arguments["n_stages"] == len(arguments["strides"]) == levels
    assert len(arguments["features_per_stage"]) == len(arguments["n_conv_per_stage"]) == levels
    assert len(arguments["n_conv_per_stage_decoder"]) == levels - 1


def changed_architecture(**entries: Any) -> dict[str, Any]:
    architecture = plain(THICK)
    architecture["arch_kwargs"] |= entries
    return architecture


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [
        (changed_architecture(norm_op="torch.nn.BatchNorm3d"), "norm_op InstanceNorm"),
        (changed_architecture(dropout_op="torch.nn.Dropout3d"), "dropout_op None"),
        (changed_architecture(nonlin="torch.nn.GELU"), "nonlin LeakyReLU"),
        (plain(THICK) | {"network_class_name": "a.ResidualEncoderUNet"}, "ResidualEncoderUNet"),
    ],
)
def test_other_networks_are_refused(architecture: dict[str, Any], reason: str) -> None:
    odd = plans()
    odd["configurations"]["3d_fullres"]["architecture"] = architecture
    with pytest.raises(ValueError, match=f"configuration 3d_fullres: .*{reason}"):
        spad_plans(odd)


def test_patches_that_cannot_be_halved_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(1, 3, 3\) voxels"):
        spad_architecture(plain(THICK), spacing=(1, 1, 1), patch_size=(1, 3, 3))


# --- network ---


@pytest.mark.parametrize("name", ["2d", "3d_fullres"])
def test_the_network_runs_and_supervises_as_planned(name: str) -> None:
    configuration = spad_plans(plans())["configurations"][name]
    x = torch.rand(2, 1, *configuration["patch_size"])
    deep = build(configuration, deep_supervision=True)
    strides = configuration["architecture"]["arch_kwargs"]["strides"]
    size, sizes = list(x.shape[2:]), []
    for stride in strides[:-1]:
        size = [n // s for n, s in zip(size, stride, strict=True)]
        sizes.append(size)
    with torch.no_grad():
        assert [list(y.shape[2:]) for y in deep(x)] == sizes
        expected = deep(x)[0]
        deep.decoder.deep_supervision = False  # as nnU-Net does for validation
        assert torch.equal(deep(x), expected)
        shallow = build(configuration)
        shallow.load_state_dict(deep.state_dict())
        assert torch.equal(shallow(x), expected)


def test_counts_of_the_decoder_start_at_the_coarsest_level() -> None:
    configuration = spad_plans(plans())["configurations"]["3d_fullres"]
    configuration["architecture"]["arch_kwargs"]["n_conv_per_stage_decoder"] = [3, 2, 1]
    assert [len(stage.blocks) for stage in build(configuration).decoder.stages] == [1, 2, 3]


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"strides": [[1, 1, 1], *[[2, 2, 2]] * 3]}, "not those of degree 2"),
        ({"features_per_stage": [4, 6, 8]}, "4 levels need as many widths"),
    ],
)
def test_plans_changed_by_hand_are_checked(entry: dict[str, Any], reason: str) -> None:
    configuration = copy.deepcopy(spad_plans(plans())["configurations"]["3d_fullres"])
    configuration["architecture"]["arch_kwargs"] |= entry
    with pytest.raises(ValueError, match=reason):
        build(configuration)


# --- command ---


def test_plan_writes_plans(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = tmp_path / "nnUNetPlans.json", tmp_path / "nnUNetSpadnetPlans.json"
    source.write_text(json.dumps(plans()))
    assert command.main(["plan", str(source), str(target), "org/unet"]) == 0
    written = json.loads(target.read_text())
    assert written["plans_name"] == "nnUNetSpadnetPlans"
    assert written["spadnet_encoder"] == "org/unet"
    assert written["configurations"] == spad_plans(plans())["configurations"]
    source.write_text("{}")
    assert command.main(["plan", str(source), str(tmp_path / "other.json")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "not a plans file" in line
    assert str(source) in line
    assert sorted(path.name for path in tmp_path.iterdir()) == [source.name, target.name]


def test_unknown_commands_show_the_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["trian"]) == 2
    assert "usage" in capsys.readouterr().err
    assert command.main(["--help"]) == 0


def test_the_folder_of_trainers_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["trainers"]) == 0
    folder = Path(capsys.readouterr().out.strip())
    modules = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
    assert len(modules) == 1, "nnU-Net imports them all"
    assert command.TRAINER in modules[0].read_text()


@pytest.mark.skipif(
    importlib.util.find_spec("nnunetv2") is not None, reason="nnunetv2 is installed"
)
def test_without_nnunet_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(command.SEARCH_PATH, "before")
    assert command.main(["train", "1", "2d", "0"]) == 1
    assert "spadnet[nnunet]" in capsys.readouterr().err
    folders = os.environ[command.SEARCH_PATH].split(os.pathsep)
    assert folders == [str(command.TRAINERS), "before"]


# --- with nnU-Net ---


def as_planned(weight: Tensor, shape: torch.Size) -> Tensor:
    """Fold a kernel as the degree asks, and put it into the middle of the planned one."""
    if weight.shape[2:] == shape[2:]:
        return weight
    folded = weight.sum(2) if len(shape) == 4 else weight.sum(2, keepdim=True)
    if folded.shape == shape:
        return folded
    planned = torch.zeros(shape)
    planned[:, :, 1:2] = folded
    return planned


def copy_stage(stage: Stage, planned: nn.Module, degrees: list[int]) -> None:
    for block, theirs, degree in zip(stage.blocks, planned.convs, degrees, strict=True):
        weight = block.conv.weight if degree == 0 else block.conv.weight.sum(2, keepdim=True)
        if theirs.conv.weight.ndim == 4:
            weight = block.conv.weight.sum(2)
        theirs.conv.weight.copy_(as_planned(weight, theirs.conv.weight.shape))
        theirs.norm.weight.copy_(block.norm.weight)
        theirs.norm.bias.copy_(block.norm.bias)


@needs_nnunet
@pytest.mark.parametrize(
    "spacing", [(1.0, 1.0, 1.0), (3.0, 1.0, 1.0), (5.0, 0.8, 0.8), (9.0, 1.0, 1.0), (1.0, 1.0)]
)
@torch.no_grad()
def test_equals_the_network_that_nnunet_plans(spacing: tuple[float, ...]) -> None:
    from nnunetv2.experiment_planning.experiment_planners.network_topology import (
        get_pool_and_conv_props,
    )
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    depth = {1.0: 64, 3.0: 32, 5.0: 16, 9.0: 16}[spacing[0]]
    size = (64, 64) if len(spacing) == 2 else (depth, 64, 64)
    _, strides, kernels, patch, _ = get_pool_and_conv_props(spacing, size, 4, 99)
    entry = plain([list(s) for s in strides], [list(k) for k in kernels])
    entry["arch_kwargs"]["conv_bias"] = True
    theirs = get_network_from_plans(
        entry["network_class_name"],
        entry["arch_kwargs"],
        entry["_kw_requires_import"],
        1,
        3,
        deep_supervision=True,
    ).eval()
    changed, grown = spad_architecture(entry, spacing=spacing, patch_size=patch)
    assert grown == list(patch)
    assert changed["arch_kwargs"]["strides"] == [list(s) for s in strides]
    ours = get_network_from_plans(
        changed["network_class_name"],
        changed["arch_kwargs"],
        changed["_kw_requires_import"],
        1,
        3,
        deep_supervision=True,
    ).eval()
    assert isinstance(ours, PlannedUNet)
    unet, degree = ours.unet, 99 if ours.degree is None else ours.degree
    for name, bias in theirs.named_parameters():
        if name.endswith("conv.bias"):
            bias.zero_()  # the norm takes it away
    for level, stage in enumerate(unet.encoder.stages):
        own = max(degree - level, 0)
        first = max(degree - max(level - 1, 0), 0)
        copy_stage(stage, theirs.encoder.stages[level][0], [first, own])
    for level, stage in enumerate(unet.decoder.stages):
        own, place = max(degree - level, 0), len(unet.decoder.stages) - 1 - level
        copy_stage(stage, theirs.decoder.stages[place], [own, own])
        up, planned = unet.decoder.ups[level], theirs.decoder.transpconvs[place]
        weight = up.weight.mean(2, keepdim=True) if own > 0 else up.weight
        planned.weight.copy_(weight.reshape(planned.weight.shape))
        planned.bias.copy_(up.bias)
        head, planned = unet.decoder.heads[level], theirs.decoder.seg_layers[place]
        planned.weight.copy_(head.weight.reshape(planned.weight.shape))
        planned.bias.copy_(head.bias)
    x = torch.rand(1, 1, *patch)
    for a, b in zip(ours(x), theirs(x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@needs_nnunet
def test_nnunet_finds_the_trainer_and_builds_its_network() -> None:
    program = """
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
import json, sys
trainer = recursive_find_trainer_class_by_name("nnUNetTrainerSpadnet")
assert recursive_find_trainer_class_by_name("nnUNetTrainerSpadnetVit") is not trainer
manager = PlansManager(json.loads(sys.stdin.read()))
network = trainer.build_network_architecture(
    manager, manager.get_configuration("3d_fullres"), 1, 3, enable_deep_supervision=False
)
print(type(network).__name__, network.degree)
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps(spad_plans(plans())),
        env=os.environ | {command.SEARCH_PATH: str(command.TRAINERS)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "PlannedUNet 2"


def test_strides_of_two_levels() -> None:
    assert spad_strides(2, None) == [[1, 1], [2, 2]]
    assert spad_strides(2, 0) == [[1, 1, 1], [2, 2, 2]]
