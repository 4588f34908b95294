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

import importlib
import importlib.util
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parent
JOBS = {
    "demo": "inlay.demo.job",
    "evaluate": "inlay.evaluation",
    "bench": "inlay.benchmarks",
    "train-demo": "inlay.demo.training",
    "pictures": "inlay.demo.help_pictures",
}


def import_pack() -> None:
    """Makes the checkout importable as `inlay`, whatever its folder is called, and not through sys.path."""
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
    package = types.ModuleType("inlay")
    package.__path__ = [str(ROOT)]
    sys.modules["inlay"] = package


# The tests load this file beside the real package.
if "inlay" not in sys.modules:
    import_pack()

from inlay.demo.fresh_environment import prepare_environment  # noqa: E402
from inlay.demo.fresh_host import DEFAULT_HOST, HOSTS, prepare_host  # noqa: E402
from inlay.demo.preparing import Failure, python_version, say  # noqa: E402


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
            again, stopped = stopped, True
            say("Stopping ...")
            # On Windows the terminal's Ctrl-C has reached the child as well, and nothing gentler than a kill is left.
            if os.name != "nt" or again:
                child.terminate()


def within(comfyui: Path, command: str, arguments: list[str]) -> int:
    """The command itself, in a Python that has everything."""
    os.environ["INLAY_COMFYUI"] = str(comfyui)
    if command == "test":
        import pytest

        for name in [name for name in sys.modules if name.partition(".")[0] == "inlay"]:
            del sys.modules[name]
        os.chdir(ROOT)
        return int(pytest.main(arguments))
    if command == "demo":
        return importlib.import_module(JOBS[command]).main(arguments, comfyui)
    # Suites measure pictures and want to be fast; benches measure the host as its users run it.
    importlib.import_module("inlay.host.boot").boot(comfyui, fused_attention=command == "evaluate")
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
