"""Safetensors files of the user's, which may be cut short."""

from pathlib import Path

import comfy.utils
from torch import Tensor

# The host takes both for safetensors.
SAFE = (".safetensors", ".sft")


def read_whole(path: str | Path, remedy: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata. Raises ValueError, ending with the remedy, for a file that is damaged."""
    try:
        tensors, metadata = comfy.utils.load_torch_file(str(path), safe_load=True, return_metadata=True)
    except (MemoryError, OSError):
        raise
    # What a file cut short raises depends on the host and on where it is cut.
    except Exception as error:
        raise ValueError(f'The file "{Path(path).name}" is damaged. {remedy}') from error
    return tensors, metadata or {}
