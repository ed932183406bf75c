"""``spadnet visualise``: pictures of what trained models see in images."""

import io
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image

from spadnet.cli.progress import progress
from spadnet.cli.trained import (
    choose_device,
    find_inputs,
    find_loaded,
    number,
    read_options,
    required,
    tell_faults,
)
from spadnet.cli.usage import UsageError
from spadnet.data.atomic import write_atomic
from spadnet.data.image import Image
from spadnet.data.inputs import Item
from spadnet.data.io import ImageError, read_frames, write_like
from spadnet.data.journal import Fault
from spadnet.inference.embed import QUARANTINE
from spadnet.inference.encoder import Encoder
from spadnet.inference.maps import (
    TokenMap,
    code_colours,
    code_map,
    encoder_maps,
    heat,
    overlay,
)
from spadnet.inference.trained_range import RangeWatch, TrainedRange
from spadnet.inference.work_list import frame_keys, output_files, write_quarantine
from spadnet.models.tokenizer import Tokenizer
from spadnet.models.vit import SpadViT
from spadnet.weights.hub import Loaded

logger = logging.getLogger(__name__)


def run(argv: Sequence[str]) -> int:
    """Write the maps of the images of an input."""
    options = read_options("visualise", argv)
    if options is None:
        return 0
    out = Path(required(options, "out", "FOLDER is missing: a folder")).expanduser()
    max_tokens = int(number(options, "max_tokens", low=1, high=1 << 20))
    if options["model"] is None and options["tokenizer"] is None:
        raise UsageError("model=FOLDER or tokenizer=FOLDER is missing: a trained model")
    if out.is_file():
        raise UsageError(f"out={out} is a file; give a folder")
    device = choose_device(options)
    items = find_inputs(options)
    encoder, coder, watch = None, None, None
    if options["model"] is not None:
        loaded = find_loaded(str(options["model"]), expect=SpadViT)
        vit = loaded.model.to(device)
        assert isinstance(vit, SpadViT)
        trained = TrainedRange.of(loaded.config["training"])
        encoder = Encoder(vit, contract=loaded.contract, max_tokens=max_tokens, trained=trained)
    if options["tokenizer"] is not None:
        coder = find_loaded(str(options["tokenizer"]), expect=Tokenizer)
        coder.model.to(device)
        watch = RangeWatch(TrainedRange.of(coder.config["training"]))
    stems = output_files(_named(items), out, ending="")
    faults: list[Fault] = []
    num_images = 0
    with progress("visualise") as report:
        for place, (item, stem) in enumerate(zip(items, stems, strict=True)):
            report(place, len(items), len(faults))
            try:
                frames = read_frames(item.path, spacing=item.spacing, files=item.files)
            except ImageError as error:
                faults.append(Fault(item.key, str(error)))
                continue
            for name, image in zip(frame_keys(stem.name, len(frames)), frames, strict=True):
                try:
                    maps = _maps(image, encoder, coder, max_tokens)
                    if watch is not None:
                        watch.look_at(maps["codes"][0].image)
                except ImageError as error:
                    faults.append(Fault(image.source, str(error)))
                    continue
                stem.parent.mkdir(parents=True, exist_ok=True)
                for kind, (token_map, colours) in maps.items():
                    _write(stem.with_name(f"{name}_{kind}"), token_map, colours, image)
                num_images += 1
        report(len(items), len(items), len(faults))
    if not num_images and len(faults) == 1:
        raise ImageError(faults[0].reason)
    if num_images or out.is_dir():
        write_quarantine(out / QUARANTINE, faults)
        tell_faults(faults, out / QUARANTINE)
    if not num_images:
        raise ImageError(
            f"none of the {len(items)} files can be used; the first: {faults[0].reason}"
        )
    return 0


def _named(items: Sequence[Item]) -> list[Item]:
    """Items whose keys lack their files' endings, where they differ without."""
    stems = []
    for item in items:
        folder, slash, name = item.key.rpartition("/")
        stems.append(folder + slash + (name.removesuffix(".gz").rpartition(".")[0] or name))
    counts = Counter(stems)
    return [
        item._replace(key=stem) if counts[stem] == 1 else item
        for item, stem in zip(items, stems, strict=True)
    ]


def _maps(
    image: Image, encoder: Encoder | None, coder: Loaded | None, max_tokens: int
) -> dict[str, tuple[TokenMap, np.ndarray]]:
    """Maps and colours of their tokens, by name."""
    maps: dict[str, tuple[TokenMap, np.ndarray]] = {}
    if encoder is not None:
        components, attention = encoder_maps(encoder, image)
        maps["pca"] = components, components.values
        maps["attention"] = attention, heat(attention.values)
    if coder is not None:
        assert isinstance(coder.model, Tokenizer)
        codes = code_map(coder.model, image, contract=coder.contract, max_tokens=max_tokens)
        maps["codes"] = codes, code_colours(codes.values)
    return maps


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
