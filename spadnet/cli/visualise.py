"""``spadnet visualise``: pictures of what trained models see in one image."""

import io
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image

from spadnet.cli.trained import choose_device, find_loaded, number, read_options, required
from spadnet.cli.usage import UsageError
from spadnet.data.atomic import write_atomic
from spadnet.data.image import Image
from spadnet.data.io import ImageError, read_image, write_like
from spadnet.inference.encoder import Encoder
from spadnet.inference.maps import (
    TokenMap,
    code_colours,
    code_map,
    encoder_maps,
    heat,
    overlay,
)
from spadnet.models.tokenizer import Tokenizer
from spadnet.models.vit import SpadViT

logger = logging.getLogger(__name__)


def run(argv: Sequence[str]) -> int:
    """Write the maps of an image."""
    options = read_options("visualise", argv)
    if options is None:
        return 0
    source = Path(required(options, "in", "FILE is missing: an image")).expanduser()
    out = Path(required(options, "out", "FOLDER is missing: a folder")).expanduser()
    max_tokens = int(number(options, "max_tokens", low=1, high=1 << 20))
    if options["model"] is None and options["tokenizer"] is None:
        raise UsageError("model=FOLDER or tokenizer=FOLDER is missing: a trained model")
    if out.is_file():
        raise UsageError(f"out={out} is a file; give a folder")
    device = choose_device(options)
    image = read_image(source)
    maps: dict[str, tuple[TokenMap, np.ndarray]] = {}
    if options["model"] is not None:
        loaded = find_loaded(str(options["model"]), expect=SpadViT)
        vit = loaded.model.to(device)
        assert isinstance(vit, SpadViT)
        encoder = Encoder(vit, contract=loaded.contract, max_tokens=max_tokens)
        components, attention = encoder_maps(encoder, image)
        maps["pca"] = components, components.values
        maps["attention"] = attention, heat(attention.values)
    if options["tokenizer"] is not None:
        loaded = find_loaded(str(options["tokenizer"]), expect=Tokenizer)
        tokenizer = loaded.model.to(device)
        assert isinstance(tokenizer, Tokenizer)
        codes = code_map(tokenizer, image, contract=loaded.contract, max_tokens=max_tokens)
        maps["codes"] = codes, code_colours(codes.values)
    stem = source.name.removesuffix(".gz").rpartition(".")[0] or source.name
    out.mkdir(parents=True, exist_ok=True)
    for name, (token_map, colours) in maps.items():
        _write(out / f"{stem}_{name}", token_map, colours, image)
    return 0


def _write(path: Path, token_map: TokenMap, colours: np.ndarray, image: Image) -> None:
    """Write a map as overlay and as NIfTI on the grid of the file."""
    picture = io.BytesIO()
    PIL.Image.fromarray(overlay(token_map, colours)).save(picture, format="png")
    write_atomic(path.with_name(f"{path.name}.png"), picture.getvalue())
    volume = path.with_name(f"{path.name}.nii.gz")
    try:
        write_like(token_map.on_input(), image, volume)
    except ImageError as error:
        raise ValueError(str(error)) from error
    logger.info("%s.png and %s written", path, volume.name)
