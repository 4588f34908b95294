"""Another folder for learned concepts, for commands that must leave the user's own alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import folder_paths


@contextmanager
def embeddings_in(folder: Path) -> Iterator[None]:
    """Concepts are saved to this folder and found there. Text encoders that are to find them are loaded within."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder_paths.folder_names_and_paths["embeddings"][0]
    paths.insert(0, str(folder))
    try:
        yield
    finally:
        paths.remove(str(folder))
