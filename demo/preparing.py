"""What preparing ComfyUI and the environment share. Standard library only, as all that dev.py starts with."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Marks a folder that was prepared to its end.
COMPLETE = ".inlay-complete"


class Failure(Exception):
    """What went wrong and what to do, in one sentence for the user."""


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def python_version() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


@contextlib.contextmanager
def preparing(root: Path) -> Iterator[None]:
    """One process at a time prepares; the system drops the lock of a process that was killed."""
    (root / ".host").mkdir(exist_ok=True)
    with open(root / ".host" / "lock", "a+") as file:
        told = False
        while not _locked(file.fileno()):
            if not told:
                say("Waiting for another dev.py that is preparing ...")
            told = True
            time.sleep(0.5)
        yield


def _locked(file: int) -> bool:
    try:
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(file, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def venv_python(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def make_venv(folder: Path) -> None:
    if subprocess.call([sys.executable, "-m", "venv", str(folder)], stdout=2):
        raise Failure(
            "Python's own venv module could not make an environment; on Debian and Ubuntu install the package "
            f"python{python_version()}-venv, then run the same command again."
        )
