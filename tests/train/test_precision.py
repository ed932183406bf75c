"""Precision follows the hardware unless it is given."""

import pytest
import torch

from spadnet.train.precision import choose_precision


def test_auto_uses_bfloat16_only_in_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    for has_amx, expected in ((True, "bf16-mixed"), (False, "32-true")):
        for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
            monkeypatch.setattr(torch.cpu, name, lambda has_amx=has_amx: has_amx)
        assert choose_precision("auto", device="cpu") == expected


def test_given_precision_is_kept_and_a_misspelt_one_refused() -> None:
    assert choose_precision("32-true", device="cpu") == "32-true"
    with pytest.raises(ValueError, match="did you mean 'bf16-mixed'"):
        choose_precision("bf16-mxed")
