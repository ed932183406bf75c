"""Files of weights that other programs wrote."""

import pickle
from pathlib import Path

import torch
from safetensors.torch import load_file

from spadnet.weights.convert.rename import StateDict

_WRAPPERS = ("state_dict", "model", "module")


def read_foreign(file: str | Path) -> StateDict:
    """Read a state dict out of a safetensors file or a pickle; no code of a pickle is run.

    Args:
        file: The file; a dictionary around the state dict (``state_dict``, ``model``, ``module``)
            is taken off.

    Raises:
        ValueError: If it is no file of weights, or holds more than plain types and tensors.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path}: not a file of weights, or one that holds more than plain types and tensors"
        ) from error
    except Exception as error:  # bytes that are no pickle break the unpickler in any way
        raise ValueError(f"{path}: not a file of weights") from error
    for name in _WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(name), dict):
            state = state[name]
            break
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise ValueError(f"{path}: not a file of weights")
    return state
