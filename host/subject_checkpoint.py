"""The file from which a cancelled training of a subject goes on."""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import folder_paths
import torch
from safetensors import SafetensorError

from ..training.subject import SubjectTraining
from ..training.subject_settings import SubjectSettings
from .embedding_files import write_whole
from .safe_files import read_whole

logger = logging.getLogger("inlay")

# What may differ between the run that was cancelled and the one that goes on.
_FREE = ("steps", "epochs", "repeats", "preview_every", "resume", "checkpointing")
# What may besides after a run that ended in no number.
_REMEDIES = ("learning_rate", "precision")


class SubjectCheckpoint:
    """<output folder>/inlay/<name>.subject.safetensors, good for the same recipe, photos and models."""

    def __init__(self, name: str, settings: SubjectSettings, parts: Mapping[str, str]) -> None:
        """parts: fingerprints of everything that the result depends on besides the recipe, by what users call it."""
        self.path = Path(folder_paths.get_output_directory(), "inlay", f"{name}.subject.safetensors")
        self.most = settings.steps
        self.recipe = {key: value for key, value in asdict(settings).items() if key not in _FREE} | dict(parts)

    def save(self, training: SubjectTraining, diverged: bool = False) -> bool:
        """Whether there is such a file now. Does nothing before the first step is done, or amid one.

        diverged: the run ended in no number, and goes on with another learning rate or precision.
        """
        if not training.done or not training.whole:
            return False
        metadata = {"inlay.recipe": json.dumps(self.recipe), "inlay.free": json.dumps(_REMEDIES if diverged else ())}
        try:
            write_whole(training.state(), self.path, metadata)
        except (OSError, SafetensorError) as error:
            logger.error("The checkpoint %s could not be written (%s).", self.path.name, error)
            return False
        return True

    def load(self, training: SubjectTraining) -> None:
        """Sets the training to where the stopped run was, if there is one. Raises ValueError for another recipe."""
        if not self.path.is_file():
            return
        state, metadata = read_whole(self.path, "Set resume to off to start anew.")
        saved, free = (json.loads(metadata.get(f"inlay.{key}", "{}")) for key in ("recipe", "free"))
        other = [key for key, value in self.recipe.items() if key not in free and saved.get(key) != value]
        if other or len(state["losses"]) > self.most:
            raise ValueError(
                f"The cancelled run of this name had another recipe ({', '.join(other) or 'more steps'}). "
                "Set it as it was to go on, or set resume to off to start anew."
            )
        training.load_state({key: torch.clone(value) for key, value in state.items()})
        logger.info("Going on after step %d from %s", training.done, self.path)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
