"""Imports point one way, heavy frameworks stay in their part, and ``import spadnet`` is light."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "spadnet"

# What each part may import from spadnet besides itself. Everything here is transitive already.
_LEAVES = {"spacing", "near_names", "ranks"}
_MODELS = _LEAVES | {"layers", "models"}
_WEIGHTS = _MODELS | {"weights"}
_INPUT = _LEAVES | {"synthesis", "data"}
MAY_IMPORT: dict[str, set[str]] = {
    "spacing": set(),
    "near_names": set(),
    "ranks": set(),
    "layers": _LEAVES,
    "models": _LEAVES | {"layers"},
    "weights": _MODELS,
    "losses": _LEAVES,
    "synthesis": _LEAVES,
    "data": _LEAVES,
    "train": _WEIGHTS | _INPUT | {"losses"},
    "inference": _WEIGHTS | _INPUT,
    "integrations": _WEIGHTS | _INPUT | {"inference"},  # nothing imports it
    "evaluate": _WEIGHTS | _INPUT | {"losses", "inference"},
    "cli": _WEIGHTS | _INPUT | {"losses", "train", "inference", "evaluate", "spadnet"},
    "__main__": {"cli"},
    "spadnet": _WEIGHTS | _INPUT | {"inference"},  # spadnet/__init__.py, the public API
}

# Third-party packages and the only modules (with their submodules) that may import them.
CONFINED: dict[str, set[str]] = {
    "lightning": {"spadnet.train"},
    "pytorch_lightning": {"spadnet.train"},
    "hydra": {"spadnet.cli"},
    "omegaconf": {"spadnet.cli"},
    "SimpleITK": {"spadnet.data.io"},
    "nnunetv2": {"spadnet.integrations.nnunet.trainer"},
}

NAMELESS = {"utils", "helpers", "misc", "common", "base"}
HEAVY = {"lightning", "pytorch_lightning", "hydra", "omegaconf", "matplotlib", "tensorboard"}


def imported_modules(source: str, *, module: str, is_package: bool) -> Iterator[str]:
    """Absolute dotted names that ``source`` imports anywhere, functions included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = module.split(".") if is_package else module.split(".")[:-1]
            parents = parents[: len(parents) - node.level + 1] if node.level else []
            origin = ".".join([*parents, *([node.module] if node.module else [])])
            yield from (f"{origin}.{alias.name}" for alias in node.names)
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func) in {"importlib.import_module", "import_module", "__import__"}
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            yield str(node.args[0].value)


def part_of(name: str) -> str:
    """The part of spadnet that a dotted name belongs to; ``spadnet`` for the public API."""
    second = name.split(".")[1:2]
    return second[0] if second and second[0] in MAY_IMPORT else "spadnet"


def violations(source: str, *, module: str, is_package: bool = False) -> list[str]:
    """Say what is wrong with the imports and the name of one module; empty when all is well."""
    found = [f"{module}: '{part}' says nothing" for part in module.split(".") if part in NAMELESS]
    own = part_of(module)
    if own == "spadnet" and module != "spadnet":
        found.append(f"{module} belongs to no part of the design")
    for name in imported_modules(source, module=module, is_package=is_package):
        top = name.split(".")[0]
        if top == "spadnet":
            part = part_of(name)
            if part != own and part not in MAY_IMPORT[own]:
                found.append(f"{module} imports {name}, against the direction of imports")
        elif top in CONFINED and not any(
            module == home or module.startswith(f"{home}.") for home in CONFINED[top]
        ):
            found.append(f"{module} imports {name}, which is kept to {sorted(CONFINED[top])}")
    return found


def module_name(path: Path) -> str:
    """Dotted name of a source file of the package."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_module_follows_the_direction_of_imports(path: Path) -> None:
    name = module_name(path)
    found = violations(path.read_text(), module=name, is_package=path.name == "__init__.py")
    assert found == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("spadnet.layers.rope", "import spadnet.models.vit"),
        ("spadnet.layers.rope", "from spadnet.models import vit"),
        ("spadnet.layers.rope", "from spadnet import models"),
        ("spadnet.layers.rope", "from ..models.vit import Vit"),
        ("spadnet.layers.rope", "def late():\n    from spadnet.train import optim"),
        ("spadnet.layers.rope", "import importlib\nimportlib.import_module('spadnet.cli')"),
        ("spadnet.spacing", "from spadnet.layers import spad_conv"),
        ("spadnet.data.io", "from spadnet import Spacing"),
        ("spadnet.data.io", "import spadnet"),
        ("spadnet.inference.encoder", "from spadnet.train.optim import make"),
        ("spadnet.models.vit", "import lightning as L"),
        ("spadnet.cli.demo", "from lightning.pytorch import Trainer"),
        ("spadnet.train.task", "from omegaconf import OmegaConf"),
        ("spadnet.train.task", "import hydra.utils"),
        ("spadnet.data.preprocess", "import SimpleITK as sitk"),
        ("spadnet.data.io_extra", "import SimpleITK as sitk"),
        ("spadnet.inference.encoder", "from spadnet.integrations import nnunet"),
        ("spadnet.integrations.nnunet.plans", "import nnunetv2.paths"),
        ("spadnet.data.utils", ""),
        ("spadnet.base.vit", ""),
        ("spadnet.extra", ""),
    ],
)
def test_checker_finds_a_violation(module: str, source: str) -> None:
    assert violations(source, module=module)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("spadnet.layers.rope", "import torch\nfrom spadnet.spacing import Spacing"),
        ("spadnet.layers.block", "from .rope import RotaryEmbedding3d"),
        ("spadnet.models.vit", "from ..layers import rope"),
        ("spadnet.data.io", "import SimpleITK as sitk\nfrom spadnet.spacing import Spacing"),
        ("spadnet.train.task", "import lightning as L\nfrom spadnet.losses.mim import loss"),
        ("spadnet.cli.demo", "import hydra\nfrom spadnet.train.task import Task"),
        ("spadnet", "from spadnet.models.registry import create_model"),
    ],
)
def test_checker_accepts_the_design(module: str, source: str) -> None:
    assert not violations(source, module=module, is_package=module == "spadnet")


def test_import_is_light_and_offline(tmp_path: Path) -> None:
    program = """
import sys
calls = []
sys.addaudithook(lambda event, args: calls.append(event) if event.startswith("socket.") else None)
import spadnet
print(*sorted({name.split(".")[0] for name in sys.modules}))
print(*{"socket.connect", "socket.getaddrinfo", "socket.sendto"}.intersection(calls))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    modules, network_calls = done.stdout.split("\n")[:2]
    assert "spadnet" in modules.split()
    assert not HEAVY.intersection(modules.split())
    assert not network_calls
