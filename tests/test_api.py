"""The public API: light to import, complete, and the shortest way to every part."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import spadnet


def test_every_public_name_is_there() -> None:
    for name in spadnet.__all__:
        assert getattr(spadnet, name) is not None
    assert set(spadnet.__all__) == set(dir(spadnet))


def test_type_checkers_see_every_public_name() -> None:
    tree = ast.parse(Path(spadnet.__file__).read_text())
    imported = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("spadnet.")
        for alias in node.names
    }
    assert imported == set(spadnet.__all__) - {"__version__"}


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'spadnet' has no attribute 'nonsense'"):
        _ = spadnet.nonsense  # type: ignore[attr-defined]


def test_version_is_a_version() -> None:
    assert re.match(r"\d+(\.\d+)*", spadnet.__version__)


def test_models_are_made_in_timms_manner() -> None:
    names = [info.name for info in spadnet.list_models()]
    assert {"spad_vit_base", "spad_vt_base"} <= set(names)
    with torch.device("meta"):
        vit = spadnet.create_model("spad_vit_base", in_chans=1, num_classes=3)
    assert vit.get_classifier().out_features == 3
    with pytest.raises(ValueError, match="did you mean 'spad_vit_tiny'"):
        spadnet.create_model("spad_vit_tny")


def test_import_loads_neither_torch_nor_anything_heavy() -> None:
    program = (
        "import sys, spadnet; spadnet.Spacing(5, 1, 1).degree(); print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "False"
