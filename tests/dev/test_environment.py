"""The environment: made once, repaired when half-finished, brought up to date, never deleted if it is the user's."""

from pathlib import Path

import pytest
from inlay.demo import fresh_environment as fresh
from inlay.demo.preparing import Failure, venv_python

DEVELOPER = "torch==2.11.0\n"
HOST = "torch\ntorchsde\ntorchvision\ntorchaudio>=1\nnumpy>=1.25.0\n"


class Machine:
    """A checkout in a folder, with venv and pip replaced by something that only leaves traces."""

    def __init__(self, root: Path, monkeypatch) -> None:
        self.root, self.venv = root, root / ".venv"
        self.made = self.installed = 0
        self.pip_works = True
        (root / "requirements-dev.txt").write_text(DEVELOPER)
        (root / "comfyui").mkdir()
        (root / "comfyui" / "requirements.txt").write_text(HOST)
        monkeypatch.setattr(fresh, "prepare_host", lambda version, root: root / "comfyui")
        monkeypatch.setattr(fresh, "make_venv", self.make)
        monkeypatch.setattr(fresh.subprocess, "call", self.install)
        monkeypatch.setattr(fresh.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1e12}))

    def make(self, folder: Path) -> None:
        self.made += 1
        python = venv_python(folder)
        python.parent.mkdir(parents=True)
        python.touch()

    def install(self, command: list[str], **kwargs) -> int:
        self.installed += 1
        self.command = command
        return 0 if self.pip_works else 1

    def prepare(self) -> Path:
        return fresh.prepare_environment(self.root)


@pytest.fixture
def machine(tmp_path, monkeypatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def test_it_is_made_once(machine):
    python = machine.prepare()
    assert python == venv_python(machine.venv) and python.exists()
    assert machine.prepare() == python
    assert (machine.made, machine.installed) == (1, 1)
    assert not (machine.venv / fresh.UNFINISHED).exists()


def test_torch_comes_from_our_pins_alone(machine):
    machine.prepare()
    wanted = Path(machine.command[-1]).read_text()
    assert wanted == "torchsde\nnumpy>=1.25.0\n"


def test_a_failed_install_is_said_and_made_again_from_nothing(machine):
    machine.pip_works = False
    with pytest.raises(Failure, match="pip could not install"):
        machine.prepare()
    (machine.venv / "half").touch()
    machine.pip_works = True
    machine.prepare()
    assert machine.made == 2 and not (machine.venv / "half").exists()


def test_changed_requirements_are_installed_on_top(machine):
    machine.prepare()
    (machine.venv / "kept").touch()
    (machine.root / "requirements-dev.txt").write_text(DEVELOPER + "pytest\n")
    machine.prepare()
    machine.prepare()
    assert (machine.made, machine.installed) == (1, 2) and (machine.venv / "kept").exists()


def test_an_environment_of_another_python_is_made_again(machine, monkeypatch):
    machine.prepare()
    monkeypatch.setattr(fresh, "python_version", lambda: "3.99")
    machine.prepare()
    assert machine.made == 2


def test_an_environment_whose_python_is_gone_is_made_again(machine):
    venv_python(machine.prepare().parents[1]).unlink()
    machine.prepare()
    assert machine.made == 2


def test_the_users_own_environment_is_completed_not_deleted(machine):
    machine.make(machine.venv)
    (machine.venv / "mine").touch()
    machine.prepare()
    assert (machine.venv / "mine").exists() and (machine.made, machine.installed) == (1, 1)


def test_a_half_finished_environment_does_not_delete_itself(machine, monkeypatch):
    machine.make(machine.venv)
    (machine.venv / fresh.UNFINISHED).touch()
    monkeypatch.setattr(fresh.sys, "prefix", str(machine.venv))
    with pytest.raises(Failure, match="Python outside it"):
        machine.prepare()
    assert venv_python(machine.venv).exists()


def test_a_full_disk_is_noticed_before_anything_is_made(machine, monkeypatch):
    monkeypatch.setattr(fresh.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1e9}))
    with pytest.raises(Failure, match="10 GB"):
        machine.prepare()
    assert not machine.venv.exists()
