"""Start an encoder from weights that are there: its own kind's, or a 2D EVA-02's."""

from pathlib import Path

from timm.layers.patch_embed import resample_patch_embed

from spadnet.layers.patch_embed import resample_position_grid
from spadnet.models.vit import SpadViT
from spadnet.weights.convert import StateDict, convert_timm_eva02, read_foreign
from spadnet.weights.strict import adapt_input_channels
from spadnet.weights.transfer import Transfer, put_encoder_state, put_vit

# What timm's EVA-02 are trained with; their weights files do not say.
EVA02_MEAN = (0.48145466, 0.4578275, 0.40821073)
EVA02_STD = (0.26862954, 0.26130258, 0.27577711)


def start_from(vit: SpadViT, source: str | Path, *, keep_pool: bool = True) -> Transfer:
    """Load starting weights into an encoder; only a classifier keeps its random ones.

    Args:
        vit: Changed in place.
        source: Checkpoint folder of an encoder or a masked image model, or a file with the weights
            of a timm EVA-02 (``eva02_base_*`` or ``eva02_large_*``). Input channels, patch size
            and position grid are adapted.
        keep_pool: Whether tokens are pooled as before, rather than as in the source.

    Returns:
        What was taken over.

    Raises:
        ValueError: If the weights are missing or of another size; the message names the source.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return put_encoder_state(vit, _eva02(path, vit), source=path)
    found = put_vit(vit, source)
    if not keep_pool and found.global_pool not in (None, "", vit.global_pool):
        vit.reset_classifier(vit.num_classes, found.global_pool)
    return found


def _eva02(path: Path, vit: SpadViT) -> StateDict:
    """Read and convert a timm EVA-02, fitted to the encoder's patches, channels and positions."""
    state = read_foreign(path)
    patch_size = vit.patch_embed.patch_size
    try:
        kernel = state["patch_embed.proj.weight"]
        state["patch_embed.proj.weight"] = resample_patch_embed(kernel, [patch_size, patch_size])
        converted = convert_timm_eva02(state)
        grid = resample_position_grid(converted["pos_embed"], vit.pos_embed.shape[2:])
    except (KeyError, ValueError, RuntimeError, AttributeError) as error:
        raise ValueError(f"{path}: not the weights of a timm EVA-02 ({error})") from error
    converted["pos_embed"] = grid
    if vit.in_chans != kernel.shape[1]:
        mean, std = (vit.get_buffer(name).flatten().tolist() for name in ("mean", "std"))
        names = "patch_embed.proj.weight", "patch_embed.proj.bias"
        converted[names[0]], converted[names[1]] = adapt_input_channels(
            converted[names[0]],
            converted[names[1]],
            vit.in_chans,
            mean=(EVA02_MEAN, mean),
            std=(EVA02_STD, std),
        )
    return converted
