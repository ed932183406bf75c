"""What every model promises at every degree. A test file subclasses :class:`ModelContract`.

class TestSomething(ModelContract):
    def build(self) -> nn.Module: ...
    def output_shapes(self, degree, *, batch, grid) -> list[tuple[int, ...]]: ...
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.export import Dim, export
from torch.utils._pytree import tree_leaves

from spadnet.spacing import MAX_DEGREE, required_multiple

DEGREES = range(MAX_DEGREE + 1)

# Token grids, unlike in every axis: equal sizes would let a compiler take them for one.
GRID = (2, 3, 4)
OTHER_GRID = (5, 4, 6)


def compare(actual: Any, expected: Any) -> None:
    """Assert that two nested outputs agree."""
    for ours, theirs in zip(tree_leaves(actual), tree_leaves(expected), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


class ModelContract:
    """Shapes, gradients, checkpointing, compilation, export, saving and loading."""

    in_chans = 1
    stride = 16

    def build(self) -> nn.Module:
        """Return a tiny model with random weights."""
        raise NotImplementedError

    def output_shapes(
        self, degree: int, *, batch: int, grid: Sequence[int]
    ) -> list[tuple[int, ...]]:
        """Return the shape of each tensor of the output, in order."""
        raise NotImplementedError

    def volume(self, degree: int, *, batch: int, grid: Sequence[int]) -> Tensor:
        """Return volumes in [0, 1] with ``grid`` tokens."""
        steps = required_multiple(degree, stride=self.stride)
        size = [n * step for n, step in zip(grid, steps, strict=True)]
        return torch.rand(batch, self.in_chans, *size)

    def inputs(self, degree: int, *, batch: int = 3, grid: Sequence[int] = GRID) -> tuple[Any, ...]:
        """Return the positional arguments of ``forward``."""
        return self.volume(degree, batch=batch, grid=grid), degree

    def dynamic_shapes(self) -> tuple[Any, ...]:
        """Say which dimensions of :meth:`inputs` an exported model leaves open."""
        return {0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO, 4: Dim.AUTO}, None

    @pytest.mark.parametrize("degree", DEGREES)
    def test_shapes(self, degree: int) -> None:
        model = self.build().eval()
        for batch, grid in ((1, (1, 2, 2)), (2, GRID)):
            outputs = tree_leaves(model(*self.inputs(degree, batch=batch, grid=grid)))
            shapes = self.output_shapes(degree, batch=batch, grid=grid)
            assert [tuple(output.shape) for output in outputs] == shapes

    @pytest.mark.parametrize("degree", DEGREES)
    def test_backward_reaches_every_parameter(self, degree: int) -> None:
        model = self.build().train()
        outputs = tree_leaves(model(*self.inputs(degree)))
        differentiable = [output for output in outputs if output.requires_grad]
        assert differentiable
        sum((output * torch.randn_like(output)).sum() for output in differentiable).backward()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None, name
                assert parameter.grad.isfinite().all(), name
                assert parameter.grad.abs().sum() > 0, name

    @pytest.mark.parametrize("degree", DEGREES)
    def test_checkpointing_equals_plain(self, degree: int) -> None:
        first = self.build().train()
        inputs, results = self.inputs(degree), []
        for enable in (False, True):
            model = copy.deepcopy(first)  # averages of codes move as it runs
            switch = getattr(model, "set_grad_checkpointing", None)
            switch = switch or getattr(getattr(model, "vit", None), "set_grad_checkpointing", None)
            if switch is None:  # nothing to switch on: the promise is empty
                return
            switch(enable)
            outputs = model(*inputs)
            sum(o.square().sum() for o in tree_leaves(outputs) if o.requires_grad).backward()
            gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
            results.append((outputs, gradients))
        compare(results[1], results[0])

    @pytest.mark.parametrize("degree", DEGREES)
    def test_state_survives_saving_and_loading(self, degree: int, tmp_path: Path) -> None:
        model, other = self.build().eval(), self.build().eval()
        save_file(model.state_dict(), tmp_path / "model.safetensors")
        other.load_state_dict(load_file(tmp_path / "model.safetensors"))
        inputs = self.inputs(degree)
        for ours, theirs in zip(
            tree_leaves(other(*inputs)), tree_leaves(model(*inputs)), strict=True
        ):
            assert torch.equal(ours, theirs)

    def test_no_state_is_kept_between_calls(self) -> None:
        model = self.build().eval()
        inputs = self.inputs(2)
        first = model(*inputs)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        for degree in (5, 0):
            model(*self.inputs(degree, grid=OTHER_GRID))
        compare(model(*inputs), first)
        for name, value in model.state_dict().items():
            assert torch.equal(value, before[name]), name

    def check_compiled(self, degree: int, *, backend: str, dynamic: bool = True) -> None:
        """Compile without a graph break, and compare with the plain model.

        Where ``dynamic``, one graph must serve all sizes.
        """
        torch._dynamo.reset()
        model = self.build().eval()
        compiled = torch.compile(model, fullgraph=True, dynamic=dynamic, backend=backend)
        inputs = self.inputs(degree)
        other = self.inputs(degree, batch=2, grid=OTHER_GRID)
        with torch.no_grad():
            compare(compiled(*inputs), model(*inputs))
            with torch.compiler.set_stance("fail_on_recompile"):
                again = other if dynamic else inputs
                compare(compiled(*again), model(*again))

    def check_exported(self, degree: int, *, dynamic: bool = True) -> None:
        """Export and compare with the plain model, on other sizes where ``dynamic``."""
        model, inputs = self.build().eval(), self.inputs(degree)
        open_sizes = self.dynamic_shapes() if dynamic else None
        program = export(model, inputs, dynamic_shapes=open_sizes, strict=False)
        if dynamic:
            inputs = self.inputs(degree, batch=2, grid=OTHER_GRID)
        compare(program.module()(*inputs), model(*inputs))

    # Reasoning about open sizes takes seconds a model and degree: the fast suite compiles and
    # exports with fixed sizes, and with open ones where a test file asks for it.

    @pytest.mark.parametrize("degree", [0, 2])
    def test_compiles_without_a_break(self, degree: int) -> None:
        self.check_compiled(degree, backend="eager", dynamic=False)

    @pytest.mark.slow
    @pytest.mark.parametrize("degree", DEGREES)
    def test_compiles_to_one_graph_for_all_sizes(self, degree: int) -> None:
        self.check_compiled(degree, backend="aot_eager")

    @pytest.mark.slow
    def test_compiles_with_inductor(self) -> None:
        self.check_compiled(1, backend="inductor")

    def test_exports(self) -> None:
        self.check_exported(1, dynamic=False)

    @pytest.mark.slow
    @pytest.mark.parametrize("degree", DEGREES)
    def test_exports_with_open_sizes(self, degree: int) -> None:
        self.check_exported(degree)
