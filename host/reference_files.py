"""Paint-by-Example from safetensors: its UNet as the host's MODEL, its mapper as our reference encoder."""

import re
from collections.abc import Mapping
from pathlib import Path

import comfy.sd
import folder_paths
from comfy.model_patcher import ModelPatcher
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..guidance.reference import ReferenceEncoder
from ..guidance.reference_mapper import ReferenceMapper
from .lora_files import CHANNELS, file_stamp
from .safe_files import SAFE, read_whole
from .subject_projection import has_projection, load_projection

FOLDERS = ("checkpoints", "diffusion_models", "clip_vision")
# Where Train Subject keeps the projections that it has trained.
OWN_FOLDER = "loras"
DOWNLOAD = "Download it again."
ORDERS = ("auto", "paint-by-example", "host")
# Paint-by-Example reads the masked picture first and then a mask that is 1 where the picture is kept.
_KEYS = {"paint-by-example": ("masked_image", "mask_inverted"), "host": ("mask", "masked_image")}

# The parts of the mapper by our names, in each format.
_LDM = {
    "norm1": "cond_stage_model.mapper.resblocks.{}.ln_1",
    "out": "cond_stage_model.mapper.resblocks.{}.attn.c_proj",
    "norm2": "cond_stage_model.mapper.resblocks.{}.ln_2",
    "up": "cond_stage_model.mapper.resblocks.{}.mlp.c_fc",
    "down": "cond_stage_model.mapper.resblocks.{}.mlp.c_proj",
}
_LDM_HEAD = {"norm": "cond_stage_model.final_ln", "projection": "proj_out"}
_DIFFUSERS = {
    "norm1": "mapper.blocks.{}.norm1",
    "value": "mapper.blocks.{}.attn1.to_v",
    "out": "mapper.blocks.{}.attn1.to_out.0",
    "norm2": "mapper.blocks.{}.norm3",
    "up": "mapper.blocks.{}.ff.net.0.proj",
    "down": "mapper.blocks.{}.ff.net.2",
}
_DIFFUSERS_HEAD = {"norm": "final_layer_norm", "projection": "proj_out"}
# Where whole checkpoints of SD1, SD2 and SDXL hold their text encoders.
_TEXT_ENCODERS = ("cond_stage_model.transformer.text_model.", "cond_stage_model.model.", "conditioner.embedders.")
_KINDS = ("weight", "bias")
_FORMATS = (("learnable_vector", _LDM, _LDM_HEAD), ("uncond_vector", _DIFFUSERS, _DIFFUSERS_HEAD))


def reference_files(own: bool = False) -> list[str]:
    """folder/name of every file that could hold a part, other formats too, which are refused with a sentence.

    own: also those that could hold a projection trained by Train Subject.
    """
    folders = (*FOLDERS, OWN_FOLDER) if own else FOLDERS
    return [f"{folder}/{name}" for folder in folders for name in folder_paths.get_filename_list(folder)]


def _path(name: str) -> str | None:
    folder, _, rest = name.partition("/")
    return folder_paths.get_full_path(folder, rest) if folder in (*FOLDERS, OWN_FOLDER) else None


def stamps(*names: str) -> list[tuple[int, int] | None]:
    """Of folder/name files, as lora_files.file_stamp."""
    return [file_stamp(_path(name)) for name in names]


def find_file(name: str) -> str:
    """The path of folder/name. Raises ValueError where there is none and for anything but safetensors."""
    path = _path(name)
    if path is None:
        raise ValueError(f'There is no file "{name}". Put it into one of the folders {", ".join(FOLDERS)}.')
    if not path.lower().endswith(SAFE):
        raise ValueError(
            f'"{name}" can run code when it is opened, so it is not. Convert it once, as this node\'s help page says: '
            "comfy.utils.load_torch_file(..., safe_load=True), then safetensors.torch.save_file, "
            "and choose the new file."
        )
    return path


def build_encoder(weights: Mapping[str, Tensor]) -> ReferenceEncoder:
    """The mapper, norm, projection and learned vector of Paint-by-Example, of its own or of diffusers' file, or a
    projection that we trained. Raises ValueError where the weights hold none of them.
    """
    if has_projection(weights):
        return load_projection(weights)
    formats = [known for known in _FORMATS if known[0] in weights]
    if not formats:
        raise ValueError(
            "The file holds no reference mapper. Choose Paint-by-Example's own checkpoint, diffusers' image encoder, "
            "or a LoRA of Train Subject with a trained projection."
        )
    null, block, head = formats[0]
    pattern = re.compile(re.escape(block["norm1"]).replace(re.escape("{}"), r"(\d+)") + r"\.weight")
    blocks = sum(pattern.fullmatch(key) is not None for key in weights)
    state = {f"{name}.{kind}": weights[f"{source}.{kind}"] for name, source in head.items() for kind in _KINDS}
    for number in range(blocks):
        parts = {name: source.format(number) for name, source in block.items()}
        for kind in _KINDS:
            state |= {f"blocks.{number}.{name}.{kind}": weights[f"{part}.{kind}"] for name, part in parts.items()}
            if "value" not in parts:
                joined = weights[f"cond_stage_model.mapper.resblocks.{number}.attn.c_qkv.{kind}"]
                state[f"blocks.{number}.value.{kind}"] = joined.chunk(3)[2]
    context, width = state["projection.weight"].shape
    mapper = ReferenceMapper(blocks, width, context)
    mapper.load_state_dict({key: value.float() for key, value in state.items()})
    encoder = ReferenceEncoder(mapper, weights[null].float().reshape(1, 1, context).clone(), width)
    return encoder.eval().requires_grad_(False)


def load_reference_model(path: str, order: str, disable_dynamic: bool = False) -> ModelPatcher:
    """The UNet, with its extra channels in the order and polarity that it was trained with.

    order: paint-by-example or host. Raises ValueError for a file without such a UNet.
    """
    weights, _ = read_whole(path, DOWNLOAD)
    model = comfy.sd.load_diffusion_model_state_dict(weights, disable_dynamic=disable_dynamic)
    if model is None or model.model.model_config.unet_config.get("in_channels") != 9:
        raise ValueError(
            f'"{Path(path).name}" holds no UNet with 9 channels in. Choose Paint-by-Example\'s checkpoint or its UNet.'
        )
    model.model.concat_keys = _KEYS[order]
    # The host loads a model again through this, for gradients and for other devices.
    model.cached_patcher_init = (load_reference_model, (path, order))
    return model


def load_reference_files(model_file: str, encoder_file: str, order: str) -> tuple[ModelPatcher, ReferenceEncoder]:
    """Both parts of folder/name files. order: of ORDERS; auto recognises it."""
    model_path, encoder_path = find_file(model_file), find_file(encoder_file)
    weights, metadata = read_whole(encoder_path, DOWNLOAD)
    encoder = build_encoder(weights)
    if order == "auto":
        order = _recognised_order(model_path, weights, metadata)
    model = load_reference_model(model_path, order)
    wanted, found = model.model.model_config.unet_config["context_dim"], encoder.null.shape[-1]
    if wanted != found:
        raise ValueError(
            f"The UNet takes tokens of {wanted} values and the mapper gives {found}. Choose files of one model."
        )
    return model, encoder


def _recognised_order(model_path: str, encoder: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Paint-by-Example's own files hold its learned vector; a projection of ours says what its model reads."""
    vectors = {vector for vector, _, _ in _FORMATS}
    try:
        with safe_open(model_path, "pt") as file:
            names = set(file.keys())
    except SafetensorError as error:
        raise ValueError(f'The file "{Path(model_path).name}" is damaged. {DOWNLOAD}') from error
    # A model that comes with a text encoder is none of Paint-by-Example's, whatever the encoder's file is of.
    if not vectors & names and any(name.startswith(_TEXT_ENCODERS) for name in names):
        return "host"
    told = tuple(metadata.get(CHANNELS, "").split())
    if told in _KEYS.values():
        return next(order for order, keys in _KEYS.items() if keys == told)
    return "paint-by-example" if vectors & {*names, *encoder} else "host"
