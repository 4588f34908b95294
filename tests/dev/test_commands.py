"""The command line: one clear sentence for each mistake, and orderly stops."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

DEV = Path(__file__).resolve().parents[2] / "dev.py"


def call(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(DEV), *arguments], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("paint",), "There is no command 'paint'"),
        (("host", "--version", "9.9"), "ComfyUI 9.9 is not known here"),
        (("test", "--host"), "--host needs a value"),
        (("demo", "--comfyui", "nowhere"), "There is no ComfyUI at"),
        (("test", "--comfyui", "nowhere", "--host", "all"), "give only one of the two"),
    ],
)
def test_a_mistake_gets_one_sentence(arguments, sentence):
    result = call(*arguments)
    assert result.returncode == 1 and result.stdout == ""
    assert sentence in result.stderr and len(result.stderr.strip().splitlines()) == 1


def test_help_names_every_command():
    result = call("--help")
    assert result.returncode == 0
    for command in ("demo", "test", "evaluate", "bench", "train-demo", "host", "--comfyui"):
        assert command in result.stdout
    assert call().returncode == 2


def test_a_fresh_machine_needs_the_standard_library_alone():
    # Without site-packages, and without the script's folder on the path.
    bare = [sys.executable, "-I", "-S", str(DEV), "host", "--version", "9.9"]
    assert "ComfyUI 9.9 is not known here" in subprocess.run(bare, capture_output=True, text=True, timeout=60).stderr


@pytest.mark.parametrize("spelling", [["--host", "all"], ["--host=all"]])
def test_our_options_are_taken_out_of_pytests(dev, spelling):
    arguments = ["-q", *spelling, "tests/http", "-k", "a or b"]
    assert dev.take(arguments, "--host") == "all"
    assert arguments == ["-q", "tests/http", "-k", "a or b"]
    assert dev.take(arguments, "--host") is None


def test_an_installed_comfyui_is_used_with_the_running_python(dev, tmp_path, monkeypatch):
    (tmp_path / "comfy").mkdir()
    (tmp_path / "main.py").touch()
    ran = []
    monkeypatch.setattr(dev, "run", lambda command: ran.append(command) or 0)
    assert dev.dispatch(["--comfyui", str(tmp_path), "evaluate", "swap", "--seeds", "3"]) == 0
    assert ran == [[sys.executable, str(DEV), "--within", str(tmp_path), "evaluate", "swap", "--seeds", "3"]]


def test_every_host_is_tested_and_one_failure_counts(dev, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(dev, "prepare_host", lambda version: tmp_path / version)
    monkeypatch.setattr(dev, "prepare_environment", lambda: "python")
    monkeypatch.setattr(dev, "run", lambda command: int("0.24.1" in command[3]))
    assert dev.dispatch(["test", "--host", "all", "-q"]) == 1
    assert "0.30.0: passed; 0.24.1: failed; 0.16.3: passed" in capsys.readouterr().err


@pytest.mark.parametrize(("command", "fused"), [("evaluate", True), ("bench", False)])
def test_suites_take_the_fast_attention_and_benches_the_hosts(dev, tmp_path, monkeypatch, command, fused):
    asked = []
    monkeypatch.setenv("INLAY_COMFYUI", "")  # put back afterwards
    job = SimpleNamespace(boot=lambda path, **options: asked.append((path, options)), main=lambda arguments: 0)
    monkeypatch.setattr(dev.importlib, "import_module", lambda name: job)
    assert dev.within(tmp_path, command, []) == 0
    assert asked == [(tmp_path, {"fused_attention": fused})]


def test_the_checkout_stays_off_the_path(tmp_path):
    code = f"""
        import sys
        sys.path.insert(0, {str(DEV.parent)!r})
        import dev
        import inlay.demo.server, importlib.util
        assert inlay.demo.server.PACK == dev.ROOT
        assert importlib.util.find_spec("guidance") is None
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, cwd=tmp_path)


PARENT = """
import sys
sys.path.insert(0, {root!r})
import dev
dev.stop_in_order()
sys.exit(dev.run([sys.executable, "-c", {child!r}, {seen!r}]))
"""
CHILD = """
import pathlib, sys, time
sys.path.insert(0, {root!r})
import dev
dev.stop_in_order()
seen = pathlib.Path(sys.argv[1])
try:
    seen.touch()
    time.sleep(30)
except KeyboardInterrupt:
    time.sleep(0.3)  # a second signal here would cut the tidying short
    seen.write_text("orderly")
    sys.exit(7)
"""


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
@pytest.mark.parametrize(
    ("number", "kill"), [(signal.SIGINT, os.killpg), (signal.SIGINT, os.kill), (signal.SIGTERM, os.kill)]
)
def test_a_stop_reaches_the_job_once_and_its_code_comes_back(tmp_path, number, kill):
    seen, root = tmp_path / "seen", str(DEV.parent)
    code = PARENT.format(root=root, child=CHILD.format(root=root), seen=str(seen))
    # A job that a shell has put in the background is started deaf to SIGINT.
    listen = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    parent = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, preexec_fn=listen)
    deadline = time.monotonic() + 20
    while not seen.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    kill(parent.pid, number)
    assert parent.wait(timeout=20) == 7
    assert seen.read_text() == "orderly"


def test_the_packs_own_errors_need_no_trace(dev, monkeypatch, capsys):
    class Missing(ValueError):
        pass

    def fail(arguments):
        raise Missing("The weights are missing. Train them.")

    monkeypatch.setattr(dev, "dispatch", fail)
    monkeypatch.setattr(dev, "stop_in_order", lambda: None)
    Missing.__module__ = "inlay.demo.weights"
    assert dev.main() == 1
    assert capsys.readouterr().err == "dev.py: The weights are missing. Train them.\n"
    Missing.__module__ = "elsewhere"
    with pytest.raises(Missing):
        dev.main()
