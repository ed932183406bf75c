"""Time inference on CPU: eager, specialised, bfloat16, compiled and ONNX Runtime.

    python tools/bench_inference.py [--model NAME|FOLDER] [--degree N] [--json FILE] [...]

One grey image of 5 x 10 x 10 tokens (one slice of tokens at degree 5) goes through an encoder: that
of a tokenizer, to the logits of its codes (the default, ``spad_vt_base``), or a SPAD-ViT, to its
tokens (``--model spad_vit_base``). Forms:

- ``eager``: the model as it is, float32; taps are summed at every call. It is the baseline.
- ``specialised``: ``spadnet.specialise``: taps folded once, channels last, grey images through a
  kernel summed over its channels. float32.
- ``frozen``: the same with ``spadnet.inference.freeze``: matrices laid out for oneDNN. float32.
- ``bfloat16``: ``frozen`` in bfloat16.
- ``compiled``: ``specialised`` under ``torch.compile``.
- ``onnxruntime``: ``specialised`` as ONNX under ONNX Runtime.

The forms take turns in one process, so that a noisy machine disturbs all alike; times are medians.
Outputs are compared with eager ones in the same run, and the exit code is 1 where a form differs
beyond rounding. A form that cannot run here is left out, with the reason.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from bench_steps import CLOCKS, relative_error
from torch import Tensor, nn

from spadnet.inference.freeze import can_freeze, freeze
from spadnet.inference.specialise import specialise
from spadnet.models.registry import create_model, model_names
from spadnet.models.tokenizer import Tokenizer
from spadnet.models.vit import SpadViT
from spadnet.spacing import MAX_DEGREE, required_multiple
from spadnet.train.precision import has_fast_bfloat16
from spadnet.weights.hub import load_pretrained

FORMS = ("specialised", "frozen", "bfloat16", "compiled", "onnxruntime")
GRID = (5, 10, 10)
# Root mean square difference over that of the values.
TOLERANCE = {"bfloat16": 0.05}
EXACT = 1e-4


class Result(NamedTuple):
    """Result of one form.

    Attributes:
        baseline_ms: Median time of the eager form.
        ours_ms: Median time of this form.
        error: Relative difference of the outputs.
    """

    baseline_ms: float
    ours_ms: float
    error: float

    @property
    def ratio(self) -> float:
        """How many times faster than eager."""
        return self.baseline_ms / self.ours_ms


class Encode(nn.Module):
    """An encoder as a function of the image alone."""

    def __init__(self, model: nn.Module, degree: int, *, expand: int) -> None:
        super().__init__()
        self.model = model
        self.degree = degree
        self.expand = expand

    def forward(self, image: Tensor) -> Tensor:
        """Encode grey images [B, 1, D, H, W]."""
        image = image.expand(-1, self.expand, -1, -1, -1)
        if isinstance(self.model, Tokenizer):
            return self.model.token_logits(image, self.degree)
        assert isinstance(self.model, SpadViT)
        return self.model.forward_features(image, self.degree)


def load(source: str) -> Tokenizer | SpadViT:
    """A registered size with random weights, or a trained model."""
    torch.manual_seed(0)
    model = create_model(source) if source in model_names() else load_pretrained(source)
    if not isinstance(model, Tokenizer | SpadViT):
        raise ValueError(f"{source}: holds a {type(model).__name__}, not an encoder or a tokenizer")
    return model.eval()


def build(
    form: str, model: Tokenizer | SpadViT, image: Tensor, degree: int, threads: int
) -> Callable[[], Tensor]:
    """What runs a form once."""
    if form == "eager":
        eager = Encode(model, degree, expand=model.in_chans)
        return lambda: eager(image)
    if form == "bfloat16" and not has_fast_bfloat16("cpu"):
        raise RuntimeError("this processor has no bfloat16 in hardware")
    dtype = torch.bfloat16 if form == "bfloat16" else torch.float32
    last = form != "onnxruntime"
    net = specialise(model, degree, grey=model.in_chans > 1, dtype=dtype, channels_last=last)
    frozen = form in ("frozen", "bfloat16")
    encode = Encode(
        freeze(net.model) if frozen and can_freeze(net.model) else net.model, degree, expand=1
    ).eval()
    if form == "compiled":
        compiled = torch.compile(encode)
        return lambda: compiled(image)
    if form == "onnxruntime":
        return _onnxruntime(encode, image, threads)
    typed = image.to(dtype)
    return lambda: encode(typed)


def _onnxruntime(encode: nn.Module, image: Tensor, threads: int) -> Callable[[], Tensor]:
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "model.onnx")
        made = torch.onnx.export(encode, (image,), input_names=["image"], verbose=False)
        assert made is not None
        made.save(file)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    feed = {"image": image.numpy()}
    return lambda: torch.from_numpy(session.run(None, feed)[0])


def measure(arguments: argparse.Namespace) -> dict[str, Result]:
    """Compare and time the forms, by turns."""
    model, degree = load(arguments.model), arguments.degree
    stride = model.stride if isinstance(model, Tokenizer) else model.patch_embed.patch_size
    grid = (1, *GRID[1:]) if degree == MAX_DEGREE else GRID
    if arguments.tiny:
        grid = (1, 2, 2)
    patch = required_multiple(degree, stride=stride)
    size = [n * step for n, step in zip(grid, patch, strict=True)]
    image = torch.rand(1, 1, *size, generator=torch.Generator().manual_seed(0))
    runs: dict[str, Callable[[], Tensor]] = {}
    for form in ("eager", *(arguments.only or FORMS)):
        try:
            run = build(form, model, image, degree, arguments.threads)
            run()  # compiles, allocates
        except Exception as error:  # each backend has kinds of its own
            if form == "eager":
                raise
            print(f"{form}: left out: {str(error).strip().splitlines()[0]}")
            continue
        runs[form] = run
    errors = {name: relative_error(run().float(), runs["eager"]()) for name, run in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    clock = CLOCKS[arguments.clock]
    for _ in range(arguments.repeats):
        for name, run in runs.items():
            begin = clock()
            run()
            times[name].append(clock() - begin)
    median = {name: 1e3 * statistics.median(values) for name, values in times.items()}
    return {
        name: Result(median["eager"], median[name], errors[name])
        for name in runs
        if name != "eager"
    }


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="spad_vt_base", help="name of a size, or a folder")
    parser.add_argument("--degree", type=int, default=2, choices=range(MAX_DEGREE + 1))
    parser.add_argument("--only", choices=FORMS, action="append", help="one form; repeatable")
    parser.add_argument("--repeats", type=int, default=7, help="timed runs of each form")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument(
        "--clock",
        default="cpu",
        choices=list(CLOCKS),
        help="cpu: time of the process on its cores; wall: with more than one thread",
    )
    parser.add_argument("--tiny", action="store_true", help="a small image: a test, no measurement")
    parser.add_argument("--json", type=Path, help="file for the figures")
    return parser.parse_args(argv)


@torch.inference_mode()
def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit code is 1 where outputs differ or nothing could run."""
    arguments = parse(argv)
    torch.set_num_threads(arguments.threads)
    try:
        results = measure(arguments)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{arguments.model}, degree {arguments.degree}, {arguments.threads} threads")
    print(f"{'form':<14}{'eager ms':>10}{'ms':>10}{'ratio':>8}  relative difference of outputs")
    is_equal = bool(results)
    for name, result in results.items():
        print(
            f"{name:<14}{result.baseline_ms:>10.1f}{result.ours_ms:>10.1f}{result.ratio:>8.2f}"
            f"  {result.error:.1e}"
        )
        if not result.error <= TOLERANCE.get(name, EXACT):
            is_equal = False
            print(f"{name}: outputs differ by {result.error:.1e}")
    if arguments.json:
        figures = {
            name: {"ratio": r.ratio, "baseline_ms": r.baseline_ms, "ours_ms": r.ours_ms}
            for name, r in results.items()
        }
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0 if is_equal else 1


if __name__ == "__main__":
    sys.exit(main())
