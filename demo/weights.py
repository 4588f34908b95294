"""The committed weights: fp16 safetensors, each with a JSON card beside it that says where it comes from."""

import hashlib
import json
import os
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

FOLDER = Path(__file__).resolve().parent / "weights"
FOR_TRAINING = "shown."
PARTS = ("vae", "clip", "judge", "unet", "inpaint")


class WeightsError(ValueError):
    """Weights that are missing, or were not trained together."""


def weights_path(part: str) -> Path:
    return FOLDER / f"{part}.safetensors"


def file_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def tensors_hash(tensors: dict[str, Tensor]) -> str:
    """Of the tensors as they are stored, in halves."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].detach().cpu().half().contiguous().numpy().tobytes())
    return digest.hexdigest()


def tower_hash(tower: str) -> str:
    """Of one of CLIP's towers: what stands on texts alone outlives another vision tower. tower: text or vision."""
    prefix = f"{tower}."
    return tensors_hash({key: value for key, value in load_part("clip").items() if key.startswith(prefix)})


def read_card(part: str) -> dict:
    return json.loads(weights_path(part).with_suffix(".json").read_text())


def load_part(part: str, matching: bool = True, whole: bool = False) -> dict[str, Tensor]:
    """The part's tensors, floats in fp32. Raises WeightsError if they are missing or belong to other parts.

    matching: False takes them also beside parts that they were not trained on, to train them again. whole: with what
    only training again needs.
    """
    path = weights_path(part)
    if not path.exists():
        raise WeightsError(f"The demo model '{part}' is missing. Train it with `python dev.py train-demo {part}`.")
    for other, wanted in (read_card(part).get("trained_on", {}) if matching else {}).items():
        if file_hash(weights_path(other)) != wanted:
            raise WeightsError(
                f"The demo model '{part}' was trained on another '{other}' than the one here. "
                f"Train it again with `python dev.py train-demo {part}`, or restore both files."
            )
    kept = {key: value for key, value in load_file(path).items() if whole or not key.startswith(FOR_TRAINING)}
    return {key: value.float() if value.is_floating_point() else value for key, value in kept.items()}


def save_part(part: str, tensors: dict[str, Tensor], card: dict, trained_on: tuple[str, ...] = ()) -> Path:
    """Writes the part as fp16 with its card; a card names the hashes of the parts that it was trained on."""
    FOLDER.mkdir(exist_ok=True)
    path = weights_path(part)
    halved = {key: value.half() if value.is_floating_point() else value for key, value in tensors.items()}
    partial = path.with_suffix(".partial")
    save_file({key: value.detach().cpu().contiguous() for key, value in halved.items()}, partial)
    os.replace(partial, path)
    card = {**card, "trained_on": {other: file_hash(weights_path(other)) for other in trained_on}}
    card["parameters"] = sum(value.numel() for value in halved.values() if value.is_floating_point())
    card["bytes"] = path.stat().st_size
    write_card(part, card)
    return path


def write_card(part: str, card: dict) -> None:
    weights_path(part).with_suffix(".json").write_text(json.dumps(card, indent=1) + "\n")
