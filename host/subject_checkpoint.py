"""The file from which a cancelled training of a subject goes on."""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import comfy.utils
import folder_paths
import torch
from comfy.model_patcher import ModelPatcher
from safetensors import SafetensorError
from torch import Tensor

from ..training.subject import SubjectTraining
from ..training.subject_settings import SubjectSettings
from .embedding_files import write_whole
from .models import model_id

logger = logging.getLogger("inlay")

# What may differ between the run that was cancelled and the one that goes on.
_FREE = ("steps", "preview_every", "resume", "checkpointing")


class SubjectCheckpoint:
    """<output folder>/inlay/<name>.subject.safetensors, good for the same recipe, photos and model."""

    def __init__(
        self, name: str, model: ModelPatcher, settings: SubjectSettings, tensors: Sequence[Tensor | None]
    ) -> None:
        """tensors: everything that the result depends on besides the recipe."""
        self.path = Path(folder_paths.get_output_directory(), "inlay", f"{name}.subject.safetensors")
        self.most = settings.steps
        self.recipe = {key: value for key, value in asdict(settings).items() if key not in _FREE}
        digest = hashlib.sha256()
        for tensor in tensors:
            if tensor is not None:
                digest.update(f"{tuple(tensor.shape)}".encode())
                digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        self.recipe |= {"model": model_id(model), "photos, masks and conditions": digest.hexdigest()}

    def save(self, training: SubjectTraining) -> None:
        """Does nothing before the first step is done: there would be nothing to go on with."""
        if not training.done:
            return
        metadata = {"inlay.recipe": json.dumps(self.recipe)}
        try:
            write_whole(training.state(), self.path, metadata)
        except (OSError, SafetensorError) as error:
            logger.error("The checkpoint %s could not be written (%s).", self.path.name, error)
            return
        logger.info("Stopped after %d steps. Run the same again to go on from %s", training.done, self.path)

    def load(self, training: SubjectTraining) -> None:
        """Sets the training to where the cancelled run was, if there is one. Raises ValueError for another recipe."""
        if not self.path.is_file():
            return
        state, metadata = comfy.utils.load_torch_file(str(self.path), safe_load=True, return_metadata=True)
        saved = json.loads((metadata or {}).get("inlay.recipe", "{}"))
        other = [key for key, value in self.recipe.items() if saved.get(key) != value]
        if other or len(state["losses"]) > self.most:
            raise ValueError(
                f"The cancelled run of this name had another recipe ({', '.join(other) or 'more steps'}). "
                "Set it as it was to go on, or set resume to off to start anew."
            )
        training.load_state({key: torch.clone(value) for key, value in state.items()})
        logger.info("Going on after step %d from %s", training.done, self.path)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
