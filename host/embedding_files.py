"""Learned concepts as files that the host's `embedding:name` finds."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

import comfy.sd1_clip
import comfy.utils
import folder_paths
from torch import Tensor

IF_EXISTS = ("number", "overwrite", "error")
# Whatever the host would load under a name, the first of them that a folder holds.
_SUFFIXES = ("", ".safetensors", ".pt", ".bin")
# Of the 255 bytes that file systems allow, what leaves room for numbers and the endings of checkpoints.
_LONGEST = 200
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(1, 10))}


def embedding_name(name: str, if_exists: str) -> str:
    """The name under which a concept is going to be saved, decided before it is learned.

    if_exists: `number` adds -2, -3 ... to a taken name, `overwrite` keeps it, `error` refuses it. Raises ValueError
    for that, and for a name that is empty, too long, holds parts of a path, or cannot be written in a prompt.
    """
    name = name.strip().removesuffix(".safetensors")
    if "/" in name or "\\" in name or ".." in name:
        raise ValueError(f'The name "{name}" holds parts of a path. Give a plain name, such as my-cat.')
    if not re.fullmatch(r"\w(?:[\w.-]*[\w-])?", name) or name.partition(".")[0].lower() in _RESERVED:
        raise ValueError(
            f'The name "{name}" cannot be written in a prompt or as a file. '
            "Use letters, digits, - and _ only, such as my-cat."
        )
    if len(name.encode()) > _LONGEST:
        raise ValueError(
            f"The name has {len(name.encode())} bytes and a file takes {_LONGEST}. Give a shorter one, such as my-cat."
        )
    if if_exists == "overwrite" or not _found(name):
        return name
    if if_exists == "error":
        raise ValueError(f'There is a concept "{name}" already. Choose another name, or set if_exists.')
    number = 2
    while _found(f"{name}-{number}"):
        number += 1
    return f"{name}-{number}"


def require_alone(name: str) -> None:
    """Raises ValueError where a prompt could load another file than the one that is going to be saved under the name.

    The host goes through all folders in no fixed order and takes the first file that it meets.
    """
    top = Path(_folders()[0]).resolve()
    # Where the host finds ours in the same folder before them.
    covered = {top / f"{name}{suffix}" for suffix in _SUFFIXES[1:]}
    for path in _found(name):
        if path not in covered:
            raise ValueError(
                f'Another concept "{name}" lies at {path}, and a prompt could load that one. Choose another name, or '
                "move that file."
            )


def save_embedding(vectors: Mapping[str, Tensor], name: str) -> str:
    """Writes {clip_l: (n, C), ...} under a name from `embedding_name` and returns the path; whole or not at all."""
    path = Path(_folders()[0], f"{name}.safetensors")
    write_whole({key: value.detach().cpu().contiguous() for key, value in vectors.items()}, path)
    return str(path)


def write_whole(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """A safetensors file, by way of a temporary name beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    try:
        comfy.utils.save_torch_file(dict(tensors), str(part), metadata=dict(metadata or {}))
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _folders() -> list[str]:
    return folder_paths.get_folder_paths("embeddings")


def _found(name: str) -> list[Path]:
    """The files that the host could load under the name: in every embeddings folder and in what lies below it."""
    folders = sorted({Path(folder).resolve() for folder in comfy.sd1_clip.expand_directory_list(_folders())})
    return [path for folder in folders for suffix in _SUFFIXES if (path := folder / f"{name}{suffix}").is_file()]
