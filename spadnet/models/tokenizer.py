"""The visual tokenizer SPAD-VT: encoder, quantizer, decoder (stage 1)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from spadnet.layers.spad_conv import Reduction
from spadnet.models.autoencoder import Decoder, Encoder, identity_start
from spadnet.models.quantizer import (
    NearestQuantizer,
    QuantizerKind,
    QuantizerOutput,
    SoftQuantizer,
    build_quantizer,
)
from spadnet.models.vqgan import VqganDecoder, VqganEncoder
from spadnet.spacing import required_multiple


class Tokenizer(nn.Module):
    """Turn volumes in [0, 1] into distributions over codes and back.

    >>> tokenizer = spad_vt_tiny()
    >>> reconstruction, tokens = tokenizer(torch.rand(1, 1, 8, 32, 32), degree=2)
    >>> reconstruction.shape, tokens.index.shape
    (torch.Size([1, 1, 8, 32, 32]), torch.Size([1, 2, 2, 2]))
    """

    def __init__(
        self,
        *,
        in_chans: int = 3,
        widths: Sequence[int] = (128, 256, 512),
        decoder_widths: Sequence[int] | None = None,
        stem_stride: int = 4,
        codebook_size: int = 1024,
        code_dim: int | None = None,
        quantizer: QuantizerKind = "soft",
        norm_latent: bool = False,
        reduction: Reduction = "mean",
        num_residual_blocks: int = 0,
        attention_levels: Sequence[int] = (),
        short_training: bool = False,
    ) -> None:
        """Build the tokenizer; the defaults are the published base size.

        Args:
            in_chans: Channels of the volume.
            widths: Channels of the encoder at strides 4, 8, 16.
            decoder_widths: Channels of the decoder at the same strides, ``widths`` by default.
            stem_stride: Stride of the first convolution; the total stride is this times
                ``2 ** (len(widths) - 1)``.
            codebook_size: Number of codes K.
            code_dim: Width of a code, the last of ``widths`` by default.
            quantizer: ``"soft"``, ``"gumbel"`` or ``"nearest"``.
            norm_latent: Whether a LayerNorm precedes the quantizer.
            reduction: ``"mean"``, or ``"sum"`` for released weights.
            num_residual_blocks: 0 for the published form; otherwise encoder and decoder are those
                of a VQGAN with so many residual blocks at each width, and ``stem_stride`` is 1.
            attention_levels: Numbers of the widths at which a VQGAN attends, beside its middle.
            short_training: Start values found to help runs of minutes: identity 3x3x3
                convolutions, and a first bias that keeps flat intensities alive through the
                channel LayerNorm.
        """
        super().__init__()
        self.in_chans = in_chans
        self.reduction: Reduction = reduction
        self.widths = list(widths)
        self.decoder_widths = list(decoder_widths or widths)
        self.stride = stem_stride << (len(widths) - 1)
        code_dim = code_dim or widths[-1]
        self.num_residual_blocks = num_residual_blocks
        self.attention_levels = list(attention_levels)
        if len(self.decoder_widths) != len(self.widths):
            raise ValueError(
                f"widths {widths} and decoder_widths {decoder_widths} differ in length"
            )
        if num_residual_blocks and (stem_stride != 1 or short_training):
            raise ValueError("a VQGAN has stem_stride 1, and no start for short training")
        self.encoder: Encoder | VqganEncoder
        if num_residual_blocks:
            self.encoder = VqganEncoder(
                in_chans,
                self.widths,
                num_blocks=num_residual_blocks,
                attention_levels=self.attention_levels,
                code_dim=code_dim,
            )
        else:
            self.encoder = Encoder(in_chans, widths, stem_stride=stem_stride)
        self.quantizer = build_quantizer(
            quantizer,
            codebook_size,
            code_dim,
            norm_latent=norm_latent,
            latent_dim=code_dim if num_residual_blocks else widths[-1],
        )
        self.decoder: Decoder | VqganDecoder
        if num_residual_blocks:
            self.decoder = VqganDecoder(
                in_chans,
                self.decoder_widths,
                num_blocks=num_residual_blocks,
                attention_levels=self.attention_levels,
                code_dim=code_dim,
            )
        else:
            self.decoder = Decoder(
                in_chans,
                self.decoder_widths,
                in_chans=code_dim,
                stem_stride=stem_stride,
                reduction=reduction,
            )
        if short_training:
            assert isinstance(self.encoder, Encoder)
            identity_start(self)
            assert self.encoder.stem.conv.bias is not None
            nn.init.normal_(self.encoder.stem.conv.bias)

    def config(self) -> dict[str, Any]:
        """Constructor arguments, as plain types, that build this model as it is now.

        ``short_training`` is left out: it chooses start values, not a form.
        """
        quantizer = self.quantizer
        soft = "gumbel" if isinstance(quantizer, SoftQuantizer) and quantizer.gumbel else "soft"
        return {
            "in_chans": self.in_chans,
            "widths": list(self.widths),
            "decoder_widths": list(self.decoder_widths),
            "stem_stride": self.stride >> (len(self.widths) - 1),
            "codebook_size": quantizer.codebook_size,
            "code_dim": quantizer.codebook.shape[1],
            "quantizer": "nearest" if isinstance(quantizer, NearestQuantizer) else soft,
            "norm_latent": isinstance(quantizer.norm, nn.LayerNorm),
            "reduction": self.reduction,
            "num_residual_blocks": self.num_residual_blocks,
            "attention_levels": list(self.attention_levels),
        }

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute activations again in the backward pass instead of keeping them."""
        self.encoder.grad_checkpointing = self.decoder.grad_checkpointing = enable

    def encode(self, x: Tensor, degree: int) -> Tensor:
        """Encode volumes [B, C_in, D, H, W] in [0, 1] as latents [B, C, d, h, w].

        Raises:
            ValueError: If channels or sizes do not fit the model and the degree.
        """
        self.check_input(x, degree)
        return self.encoder(2 * x - 1, degree)

    def decode(self, z: Tensor, degree: int) -> Tensor:
        """Decode quantized latents [B, C, d, h, w] as volumes around [0, 1]."""
        return (self.decoder(z, degree) + 1) / 2

    def token_logits(self, x: Tensor, degree: int) -> Tensor:
        """Logits [B, L, K] of the codes: the target of stage 2, and all it needs."""
        return self.quantizer.logits(self.encode(x, degree)).flatten(1, 3)

    def forward(
        self,
        x: Tensor,
        degree: int,
        *,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, QuantizerOutput]:
        """Reconstruct volumes through their tokens.

        Args:
            x: Volumes in [0, 1], [B, C_in, D, H, W].
            degree: Degree of anisotropy of the volumes.
            temperature: Temperature of the gumbel quantizer.
            generator: Source of the quantizer's noise.

        Returns:
            Reconstruction [B, C_in, D, H, W], and the quantizer's output.
        """
        tokens = self.quantizer(
            self.encode(x, degree), temperature=temperature, generator=generator
        )
        return self.decode(tokens.quantized, degree), tokens

    def check_input(self, x: Tensor, degree: int) -> None:
        """Raise ValueError if channels or sizes of a volume do not fit the model and the degree."""
        if x.shape[1] != self.in_chans:
            raise ValueError(f"the tokenizer takes {self.in_chans} channels, got {x.shape[1]}")
        steps = required_multiple(degree, stride=self.stride)
        if any(n % step or n == 0 for n, step in zip(x.shape[-3:], steps, strict=True)):
            raise ValueError(
                f"size {tuple(x.shape[-3:])} is not a multiple of {steps}, "
                f"which degree {degree} requires"
            )


def spad_vt_tiny(
    *, in_chans: int = 1, quantizer: QuantizerKind = "soft", codebook_size: int = 256
) -> Tokenizer:
    """Tokenizer for small machines and minutes of training."""
    return Tokenizer(
        in_chans=in_chans,
        widths=(32, 64, 128),
        codebook_size=codebook_size,
        quantizer=quantizer,
        norm_latent=True,
        short_training=True,
    )


def spad_vt_small(
    *, in_chans: int = 1, quantizer: QuantizerKind = "soft", codebook_size: int = 512
) -> Tokenizer:
    """Tokenizer for one small GPU."""
    return Tokenizer(
        in_chans=in_chans,
        widths=(64, 128, 256),
        codebook_size=codebook_size,
        quantizer=quantizer,
        norm_latent=True,
        short_training=True,
    )


def spad_vt_base(
    *,
    in_chans: int = 3,
    quantizer: QuantizerKind = "soft",
    codebook_size: int = 1024,
    reduction: Reduction = "mean",
) -> Tokenizer:
    """Tokenizer as published, 34,253,955 parameters."""
    return Tokenizer(
        in_chans=in_chans,
        quantizer=quantizer,
        codebook_size=codebook_size,
        reduction=reduction,
    )
