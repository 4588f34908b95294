"""LoRAs in kohya's keys: named, written whole, read back, and held against the model that they are put on."""

import json
import os
from collections.abc import Mapping
from math import prod
from pathlib import Path

import comfy.lora
import comfy.model_base
import folder_paths
from comfy.model_patcher import ModelPatcher
from safetensors.torch import save
from torch import Tensor

from .embedding_files import embedding_name
from .fingerprints import patches_id, tensors_id
from .models import model_id
from .safe_files import SAFE, read_whole
from .weight_probe import same_weights, weight_probe

UP, DOWN, ALPHA = ".lora_up.weight", ".lora_down.weight", ".alpha"
CHANNELS = "inlay.channels"
PROBE = "inlay.base_weights"
PATCHES = "inlay.base_patches"
_DIFFUSERS = ("lora_unet_down_blocks", "lora_unet_mid_block", "lora_unet_up_blocks")


class Lora(dict[str, Tensor]):
    """The host's LORA_MODEL, tensors by key, with what its file says about it."""

    def __init__(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        super().__init__(tensors)
        self.metadata = dict(metadata)


def lora_files() -> list[str]:
    return folder_paths.get_filename_list("loras")


def file_stamp(path: str | None) -> tuple[int, int] | None:
    """Tells a file from one that is written in its place later. None where there is none."""
    if path is None or not os.path.isfile(path):
        return None
    found = os.stat(path)
    return found.st_mtime_ns, found.st_size


def lora_stamp(name: str) -> tuple[int, int] | None:
    return file_stamp(folder_paths.get_full_path("loras", name))


def lora_name(name: str, if_exists: str) -> str:
    """The name under which a LoRA is going to be saved, decided before it is trained; rules as for embeddings."""
    name = embedding_name(name, "overwrite")
    if if_exists == "overwrite" or not _taken(name):
        return name
    if if_exists == "error":
        raise ValueError(f'There is a LoRA "{name}" already. Choose another name, or set if_exists.')
    number = 2
    while _taken(f"{name}-{number}"):
        number += 1
    return f"{name}-{number}"


def save_lora(lora: Lora, name: str) -> str:
    """Writes it under a name from `lora_name` and returns the path; whole or not at all.

    Raises ValueError where the disk does not take it.
    """
    path = Path(folder_paths.get_folder_paths("loras")[0], f"{name}.safetensors")
    try:
        _write_whole(path, file_bytes(lora, lora.metadata))
    except OSError as error:
        raise ValueError(
            f'"{path.name}" could not be written ({error}), and nothing of it was left. Free some space on the disk.'
        ) from error
    return str(path)


def file_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file. The library writes its metadata in an order of chance; here equal content is equal bytes."""
    data = save({key: tensors[key].detach().cpu().contiguous() for key in sorted(tensors)}, dict(metadata))
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] = dict(sorted(metadata.items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def _write_whole(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_bytes(data)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _taken(name: str) -> bool:
    return any(Path(folder, f"{name}.safetensors").is_file() for folder in folder_paths.get_folder_paths("loras"))


def kohya_names(model: ModelPatcher, weights: list[str]) -> dict[str, str]:
    """Kohya's name of each weight key: diffusers' paths as its trainer writes them for SD1 and SD2, SDXL's own."""
    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    names: dict[str, list[str]] = {}
    for name, weight in keys.items():
        if name.startswith("lora_unet_"):
            names.setdefault(weight, []).append(name)
    own_paths = isinstance(model.model, comfy.model_base.SDXL)
    return {weight: min(names[weight], key=lambda name: name.startswith(_DIFFUSERS) == own_paths) for weight in weights}


def weight_shapes(model: ModelPatcher) -> dict[str, tuple[int, ...]]:
    """By the host's keys, as the layers compute: a quantised weight may be kept packed."""
    shapes = {key: tuple(weight.shape) for key, weight in model.model.state_dict().items()}
    for name, layer in model.model.named_modules():
        if f"{name}.weight" in shapes and hasattr(layer, "in_features") and hasattr(layer, "out_features"):
            shapes[f"{name}.weight"] = layer.out_features, layer.in_features
    return shapes


def base_metadata(model: ModelPatcher) -> dict[str, str]:
    """How a file names its base: a fingerprint and a few weights to compare, words to show, what an inpainting model
    reads besides the latent, in its order, and which LoRAs are on it, if any are.
    """
    config = model.model.model_config.unet_config
    # Not every family has these: Flux and SD3 read no context of a width that they name.
    words = {"in_channels": "{} channels in", "context_dim": "context {}"}
    shape = [word.format(config[key]) for key, word in words.items() if key in config]
    said = {
        "inlay.base": model_id(model),
        PROBE: weight_probe(model),
        "inlay.base_kind": ", ".join([type(model.model).__name__, *shape]),
        CHANNELS: " ".join(model.model.concat_keys),
    }
    patches = patches_id(model)
    return said if patches == tensors_id(()) else said | {PATCHES: patches}


def read_lora(name: str) -> Lora:
    """A file of the host's loras folders. Raises ValueError where there is none and for anything but safetensors."""
    path = folder_paths.get_full_path("loras", name)
    if path is None:
        raise ValueError(f'There is no LoRA "{name}" in the loras folder. Check its name.')
    if not path.lower().endswith(SAFE):
        raise ValueError(f'"{name}" is not a safetensors file, and other formats can run code. Convert it first.')
    return Lora(*read_whole(path, "Train or download it again."))


def require_base(model: ModelPatcher, lora: Mapping[str, Tensor], other_weights: bool = False) -> None:
    """Raises ValueError with the reason where the LoRA was made for another base than this model.

    other_weights: lets a model of the same shapes pass whose weights are others, such as a fine-tune of the base.
    """
    metadata = getattr(lora, "metadata", {})
    made_for = metadata.get("inlay.base_kind", "another model")
    this = base_metadata(model)
    if metadata.get("inlay.base_kind", this["inlay.base_kind"]) != this["inlay.base_kind"]:
        raise ValueError(
            f"The LoRA was trained on {made_for}, and this model is {this['inlay.base_kind']}. "
            "Load the LoRA's own base."
        )
    channels = metadata.get(CHANNELS, this[CHANNELS])
    if channels != this[CHANNELS]:
        raise ValueError(
            f"The LoRA was trained on a model that reads {_words(channels)} beside the latent, and this one reads "
            f"{_words(this[CHANNELS])}. Load the base as in training: with Load Reference Model, and its order."
        )
    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    shapes = weight_shapes(model)
    for name in (key.removesuffix(UP) for key in lora if key.endswith(UP)):
        wanted = shapes.get(keys.get(name, ""))
        if wanted is None:
            if name.startswith("lora_te"):
                continue
            raise ValueError(f"The LoRA changes {name}, which this model does not have. Load the LoRA's own base.")
        if name + DOWN not in lora:
            raise ValueError(
                f"The LoRA's {name} is only half there, so the file is damaged. Train or download it again."
            )
        up, down = lora[name + UP], lora[name + DOWN]
        if (up.shape[0], down[0].numel()) != (wanted[0], _inputs(wanted)):
            raise ValueError(
                f"The LoRA's {name} is {up.shape[0]} x {down[0].numel()} and the model's layer "
                f"{wanted[0]} x {_inputs(wanted)}. Load the LoRA's own base."
            )
    same = metadata.get("inlay.base", this["inlay.base"]) == this["inlay.base"]
    # The fingerprint of a base in another precision is another one.
    if not (other_weights or same or same_weights(metadata.get(PROBE, ""), this[PROBE])):
        raise ValueError(
            "The LoRA was trained on a model of this kind with other weights. "
            "Load its own base, or set other_weights to use it on this one."
        )


def patched_otherwise(model: ModelPatcher, lora: Mapping[str, Tensor]) -> bool:
    """Whether the LoRA was trained on a base with LoRAs on it, and these are not what is on the model now."""
    wanted = getattr(lora, "metadata", {}).get(PATCHES)
    return bool(wanted) and wanted != patches_id(model)


def _words(channels: str) -> str:
    return " and ".join(channels.split()) or "nothing"


def _inputs(shape: tuple[int, ...]) -> int:
    return prod(shape[1:])
