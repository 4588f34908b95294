"""The environment .venv on a fresh machine, with what ComfyUI and the tests need. Standard library only."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

from .fresh_host import DEFAULT_HOST, prepare_host
from .preparing import COMPLETE, ROOT, Failure, make_venv, preparing, python_version, say, venv_python

UNFINISHED = ".inlay-unfinished"


def host_requirements(comfyui: Path) -> str:
    """ComfyUI's requirements without torch and its companions, whose versions requirements-dev.txt pins."""
    lines = (comfyui / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return "\n".join(line for line in lines if not re.match(r"torch(vision|audio)?\b", line)) + "\n"


def prepare_environment(root: Path = ROOT) -> Path:
    """The Python of .venv, made where it is missing, half-finished or of another Python, else brought up to date."""
    requirements = host_requirements(prepare_host(DEFAULT_HOST, root))
    developer = root / "requirements-dev.txt"
    digest = hashlib.sha256((developer.read_text(encoding="utf-8") + requirements).encode()).hexdigest()
    folder = root / ".venv"
    python, stamp, unfinished = venv_python(folder), folder / COMPLETE, folder / UNFINISHED

    def state() -> list[str]:
        return stamp.read_text().split() if stamp.is_file() and python.exists() else ["", ""]

    if state() == [digest, python_version()]:
        return python
    with preparing(root):
        if state() == [digest, python_version()]:
            return python
        ours = unfinished.exists() or state()[1] not in ("", python_version())
        if ours and Path(sys.prefix).resolve() == folder.resolve():
            raise Failure("This Python belongs to the half-finished .venv: run dev.py with the Python outside it.")
        if ours or (folder.exists() and not python.exists()):
            say("Removing the half-finished or outdated .venv ...")
            shutil.rmtree(folder)
        if shutil.disk_usage(root).free < 10e9 and not python.exists():
            raise Failure(f"The environment needs 10 GB of free disk space at {root}; make room and run this again.")
        if not python.exists():
            folder.mkdir()
            unfinished.touch()
            make_venv(folder)
        say("Installing into .venv (about 6 GB the first time, minutes) ...")
        wanted = folder / "comfyui-requirements.txt"
        wanted.write_text(requirements, encoding="utf-8")
        command = [python, "-m", "pip", "install", "--disable-pip-version-check", "-r", developer, "-r", wanted]
        if subprocess.call([str(part) for part in command], stdout=2):
            raise Failure(
                "pip could not install the environment (its reason is above): check the network connection and the "
                "free disk space, then run the same command again."
            )
        stamp.write_text(f"{digest} {python_version()}\n")
        unfinished.unlink(missing_ok=True)
    return python
