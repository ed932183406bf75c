"""Pure functions from foreign state dicts to spadnet's: state dict in, state dict out.

Every function names all keys it expects; a key that is left over is an error, so nothing is lost in
silence.
"""

from spadnet.weights.convert.foreign import read_foreign
from spadnet.weights.convert.inflation import inflate_convolutions
from spadnet.weights.convert.pumit import (
    convert_released_mim,
    convert_released_pyramid,
    convert_released_tokenizer,
    convert_released_vit,
    mim_from_released,
    tokenizer_from_released,
    vit_from_released,
)
from spadnet.weights.convert.rename import StateDict, select
from spadnet.weights.convert.timm_vit import (
    convert_timm_eva02,
    convert_timm_vit,
    spad_vit_from_timm,
)
from spadnet.weights.convert.vqgan import convert_vqgan, tokenizer_from_vqgan

__all__ = [
    "StateDict",
    "convert_released_mim",
    "convert_released_pyramid",
    "convert_released_tokenizer",
    "convert_released_vit",
    "convert_timm_eva02",
    "convert_timm_vit",
    "convert_vqgan",
    "inflate_convolutions",
    "mim_from_released",
    "read_foreign",
    "select",
    "spad_vit_from_timm",
    "tokenizer_from_released",
    "tokenizer_from_vqgan",
    "vit_from_released",
]
