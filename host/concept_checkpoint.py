"""The file from which a training that was cancelled or failed goes on."""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import asdict
from glob import escape
from pathlib import Path

import folder_paths
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..training.concept import ConceptSettings
from .concept_loop import ConceptLoop
from .embedding_files import write_whole
from .fingerprints import patches_id
from .models import model_id, prediction_kind
from .safe_files import read_whole

logger = logging.getLogger("inlay")

# What may differ between the run that stopped and the one that goes on: what a failure may ask to be changed, too.
_FREE = ("steps", "preview_every", "resume", "checkpointing", "at_once", "precision")
# Of the norm. The same VAE and text encoder may round differently another time.
_SAME = 0.01


class ConceptCheckpoint:
    """<output>/inlay/<name>.<digits>.checkpoint.safetensors, for the same settings, pictures, masks and models."""

    def __init__(
        self,
        name: str,
        model: ModelPatcher,
        settings: ConceptSettings,
        images: Tensor,
        masks: Tensor | None,
        start: Mapping[str, Tensor],
        encoded: Mapping[str, Tensor],
    ) -> None:
        """encoded: by the VAE and the text encoder, to tell them from others."""
        self.most = settings.steps
        fixed = {key: value for key, value in asdict(settings).items() if key not in _FREE}
        # The weights alone do not tell what is learned on: LoRAs lie beside them, and so does what they predict.
        what = f"{model_id(model)} {patches_id(model)} {prediction_kind(model)}"
        digest = hashlib.sha256(f"{what} {fixed} {tuple(images.shape)}".encode())
        for tensor in (images, masks, *start.values()):
            if tensor is not None:
                digest.update(tensor.detach().contiguous().numpy().tobytes())
        self.fingerprint = digest.hexdigest()
        # Another training under the same name, as of other pictures, has a file of its own.
        file = f"{name}.{self.fingerprint[:8]}.checkpoint.safetensors"
        self.path = Path(folder_paths.get_output_directory(), "inlay", file)
        self.others = f"{escape(Path(name).name)}.????????.checkpoint.safetensors"
        self.encoded = {f"encoded.{key}": value.detach().float().cpu() for key, value in encoded.items()}

    def save(self, loop: ConceptLoop) -> None:
        state = {**loop.state(), **{key: value.clone() for key, value in self.encoded.items()}}
        write_whole(state, self.path, {"inlay_concept": self.fingerprint})
        logger.info("Stopped after %d steps. Run the same again to go on from %s", loop.training.done, self.path)

    def load(self, loop: ConceptLoop) -> None:
        """Sets the loop to where the run stopped, if there is such a run."""
        if not self.path.is_file():
            if any(self.path.parent.glob(self.others)):
                logger.info("The stopped runs of this name are of other settings, pictures or models. Starting anew.")
            return
        state, metadata = read_whole(self.path, "Set resume to off to start anew.")
        same = metadata.get("inlay_concept") == self.fingerprint and len(state["losses"]) <= self.most
        if not same or not all(_close(state.pop(key, None), value) for key, value in self.encoded.items()):
            logger.info("The checkpoint %s is of other settings, pictures or models. Starting anew.", self.path)
            return
        loop.load_state({key: torch.clone(value) for key, value in state.items()})
        logger.info("Going on after step %d from %s", loop.training.done, self.path)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


def _close(kept: Tensor | None, value: Tensor) -> bool:
    return kept is not None and kept.shape == value.shape and bool((kept - value).norm() <= _SAME * value.norm())
