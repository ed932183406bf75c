"""Write a model for one degree as an ONNX file or a torch.export program, and prove it.

What is exported is the specialised network of plain convolutions, in float32, with dynamic batch
and sizes. The file is run on images of several sizes and compared with the model itself before it
takes its place.
"""

import copy
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from spadnet.inference.optional_packages import optional_package
from spadnet.inference.specialise import specialise
from spadnet.models.classifier import AttentionClassifier
from spadnet.models.conv_net import SpadConvNet
from spadnet.models.segmentor import VitSegmentor
from spadnet.models.spad_unet import SpadUNet
from spadnet.models.tokenizer import Tokenizer
from spadnet.models.tokenizer_segmentor import TokenizerSegmentor
from spadnet.models.vit import SpadViT
from spadnet.spacing import MAX_DEGREE, required_multiple
from spadnet.weights.contract import contract_of

Format = Literal["onnx", "torch_export"]
ENDINGS: dict[Format, str] = {"onnx": ".onnx", "torch_export": ".pt2"}
INPUT = "image"
METADATA = "spadnet"
"""Name of the file's metadata: JSON with the contract, the degree and where the model is from."""

_TOLERANCE = 1e-4
_TRACED = (2, 2, 3, 4)  # batch and patches (z, y, x) of the example that is traced
_CHECKED = ((1, 1, 1, 1), (3, 1, 2, 5), (1, 3, 4, 2))
_CHECKED_NORMED = ((1, 1, 1, 2), *_CHECKED[1:])  # norms over voxels want more than one of them
_MOST = 1 << 12  # patches along an axis, images in a batch

Outputs = tuple[Tensor, ...]


class EncoderOutputs(nn.Module):
    """A ViT that gives pooled feature [B, C], tokens [B, L, C] and, with a classifier, logits."""

    def __init__(self, model: SpadViT, degree: int) -> None:
        """Wrap a model for one degree."""
        super().__init__()
        self.model = model
        self.degree = degree
        self.names = ["cls", "tokens"] + ["logits"] * (model.num_classes > 0)

    def forward(self, image: Tensor) -> Outputs:
        """Run the model on images [B, C_in, D, H, W]."""
        features = self.model.forward_features(image, self.degree)
        pooled = self.model.forward_head(features, pre_logits=True)
        outputs = (pooled, features[:, self.model.num_prefix_tokens :])
        return (*outputs, self.model.get_classifier()(pooled)) if len(self.names) > 2 else outputs


class TokenizerOutputs(nn.Module):
    """A tokenizer: reconstruction, codes [B, d, h, w] and their logits [B, d, h, w, K]."""

    def __init__(self, model: Tokenizer, degree: int) -> None:
        """Wrap a model for one degree."""
        super().__init__()
        self.model = model
        self.degree = degree
        self.names = ["reconstruction", "codes", "logits"]

    def forward(self, image: Tensor) -> Outputs:
        """Run the model on images [B, C_in, D, H, W]."""
        reconstruction, tokens = self.model(image, self.degree)
        return reconstruction, tokens.index, tokens.logits


class LogitsOutputs(nn.Module):
    """A fine-tuned model: logits [B, K] of images, or [B, K, D, H, W] of voxels."""

    def __init__(self, model: nn.Module, degree: int) -> None:
        """Wrap a model for one degree."""
        super().__init__()
        self.model = model
        self.degree = degree
        self.names = ["logits"]

    def forward(self, image: Tensor) -> Outputs:
        """Run the model on images [B, C_in, D, H, W]."""
        logits = self.model(image, self.degree)
        return (logits[0] if isinstance(logits, list) else logits,)  # coarser ones for training


Wrapped = EncoderOutputs | TokenizerOutputs | LogitsOutputs
Exportable = (
    SpadViT
    | Tokenizer
    | SpadUNet
    | SpadConvNet
    | AttentionClassifier
    | VitSegmentor
    | TokenizerSegmentor
)


def export_model(
    model: Exportable,
    file: Path,
    *,
    degree: int,
    format: Format = "onnx",
    facts: Mapping[str, Any] | None = None,
) -> float:
    """Write a model for one degree and check that the file computes the same.

    Args:
        model: Encoder, tokenizer or fine-tuned model, on the CPU; it is left as it is.
        file: Where to.
        degree: Degree of anisotropy of the images.
        format: ``"onnx"``, or ``"torch_export"`` for what ``torch.export.load`` reads; its checks
            want two patches along an axis or more, unless ``.module(check_guards=False)`` is taken.
        facts: Plain values for the metadata beside the degree: contract, licence, versions.

    Returns:
        Largest difference from the model.

    Raises:
        MissingPackageError: If a package for ONNX is not installed.
        ValueError: If there is no such degree or format, or the file computes something else.
        OSError: If the file cannot be written.
    """
    if format not in ENDINGS:
        raise ValueError(f"format must be one of {', '.join(ENDINGS)}, got {format!r}")
    if not 0 <= degree <= MAX_DEGREE:
        raise ValueError(f"degree must be 0 to {MAX_DEGREE}, got {degree}")
    if format == "onnx":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            _optional(package)
    model = copy.deepcopy(model).float().eval()
    wrapped = _wrap(specialise(model, degree, channels_last=False).model, degree)
    contract = contract_of(model)
    patch = required_multiple(degree, stride=contract.stride)
    example = _image(contract.channels, patch, _TRACED)
    metadata = json.dumps(
        {
            **(facts or {}),
            "degree": degree,
            "patch": list(patch),
            "input": INPUT,
            "outputs": wrapped.names,
        }
    )
    with _quiet(), torch.no_grad():
        program = torch.export.export(
            wrapped, (example,), dynamic_shapes={INPUT: _dynamic(patch)}, strict=False
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.{os.getpid()}.part{ENDINGS[format]}")
    try:
        if format == "onnx":
            _write_onnx(program, part, example, names=wrapped.names, metadata=metadata)
            run = _onnx_runner(part)
        else:
            torch.export.save(program, part, extra_files={f"{METADATA}.json": metadata})
            run = torch.export.load(part).module(check_guards=False)
        error = _check(run, _wrap(model, degree), contract.channels, patch, where=str(file))
        os.replace(part, file)
    except RuntimeError as fault:  # torch's writer and onnxruntime do not raise OSError
        if "write" in str(fault) or "No space" in str(fault):
            raise OSError(f"{file}: cannot be written: {str(fault).splitlines()[0]}") from fault
        raise
    except OSError as fault:  # torch's names a part of the file or none
        raise OSError(fault.errno, fault.strerror or str(fault), str(file)) from fault
    finally:
        part.unlink(missing_ok=True)
    return error


def read_metadata(file: Path) -> dict[str, Any]:
    """What an exported file says of itself.

    Raises:
        MissingPackageError: If a package for ONNX is not installed.
        ValueError: If spadnet did not write it.
    """
    if file.suffix == ENDINGS["onnx"]:
        proto = _optional("onnx").load(file, load_external_data=False)
        text = {entry.key: entry.value for entry in proto.metadata_props}.get(METADATA, "")
    else:
        extra = {f"{METADATA}.json": ""}
        torch.export.load(file, extra_files=extra)
        text = extra[f"{METADATA}.json"]
    if not text:
        raise ValueError(f"{file}: spadnet did not write this file")
    metadata = json.loads(text)
    assert isinstance(metadata, dict)
    return metadata


def _wrap(model: nn.Module, degree: int) -> Wrapped:
    wrapper: type[EncoderOutputs] | type[TokenizerOutputs] | type[LogitsOutputs] = LogitsOutputs
    if isinstance(model, Tokenizer):
        wrapper = TokenizerOutputs
    elif isinstance(model, SpadViT):
        wrapper = EncoderOutputs
    wrapped = wrapper(model, degree)  # type: ignore[arg-type]
    wrapped.eval()
    return wrapped


def _dynamic(patch: Sequence[int]) -> dict[int, Any]:
    """Batch and sizes are free, in whole patches."""
    axes = ("slices", "rows", "columns")
    sizes = {
        axis + 2: step * Dim(f"patches_of_{name}", min=1, max=_MOST)
        if step > 1
        else Dim(name, min=1, max=_MOST)
        for axis, (name, step) in enumerate(zip(axes, patch, strict=True))
    }
    return {0: Dim("batch", min=1, max=_MOST), **sizes}


def _image(in_chans: int, patch: Sequence[int], size: Sequence[int]) -> Tensor:
    """A random image of a batch and patches (z, y, x); the same at every call."""
    generator = torch.Generator().manual_seed(0)
    voxels = [n * step for n, step in zip(size[1:], patch, strict=True)]
    return torch.rand(size[0], in_chans, *voxels, generator=generator)


def _write_onnx(
    program: ExportedProgram, file: Path, example: Tensor, *, names: Sequence[str], metadata: str
) -> None:
    with _quiet():
        made = torch.onnx.export(
            program,
            (example,),
            input_names=[INPUT],
            output_names=list(names),
            dynamo=True,
            verbose=False,
        )
    assert made is not None
    made.model.metadata_props[METADATA] = metadata
    made.save(file)


def _onnx_runner(file: Path) -> Callable[[Tensor], Sequence[Tensor]]:
    runtime = _optional("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda x: [torch.from_numpy(y) for y in session.run(None, {INPUT: x.numpy()})]


def _check(
    run: Callable[[Tensor], Any],
    model: Wrapped,
    in_chans: int,
    patch: Sequence[int],
    *,
    where: str,
) -> float:
    """Largest difference of floating-point outputs over images of several sizes."""
    largest = 0.0
    for size in _CHECKED_NORMED if isinstance(model, LogitsOutputs) else _CHECKED:
        x = _image(in_chans, patch, size)
        with torch.no_grad():
            expected = model(x)
            outputs = run(x)
        for name, found, wanted in zip(model.names, outputs, expected, strict=True):
            is_like = found.shape == wanted.shape
            if is_like and not wanted.is_floating_point():  # of two codes as likely either may win
                continue
            error = (found - wanted).abs().max().item() if is_like else float("inf")
            if not error <= _TOLERANCE * max(wanted.abs().max().item(), 1):
                raise ValueError(
                    f"{where}: not written: {name} of an image {list(x.shape)} differs by {error:g}"
                )
            largest = max(largest, error)
    return largest


def _optional(package: str) -> Any:
    return optional_package(package, extra="onnx", used_for="ONNX")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' notes on their own inside out of the terminal."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
