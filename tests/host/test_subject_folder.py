"""Training on a folder: broken pictures, captions and masks beside pictures, stretches, resuming, refusals."""

import gc
import logging
import shutil
import weakref
import zlib
from pathlib import Path

import comfy.model_management
import folder_paths
import numpy
import pytest
import torch
from inlay.guidance.reference import ReferenceEncoder
from inlay.host import subject_data, subject_job, subject_loop
from inlay.host.lora_files import read_lora
from inlay.host.subject_folder import PictureFolder, folder_stamp
from inlay.host.subject_telling import Teller
from inlay.host.subject_training import Photos, train_subject
from inlay.training.subject_settings import SubjectSettings
from PIL import Image

SMALL = {"preset": "custom", "rank": 2, "batch": 2, "resolution": 64, "views": 2, "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def folder():
    path = Path(folder_paths.get_input_directory(), "many")
    path.mkdir(parents=True)
    draws = numpy.random.default_rng(0)
    for number, size in enumerate([(90, 80), (70, 100), (96, 96), (80, 80)]):
        Image.fromarray(draws.integers(0, 255, (*size, 3), dtype=numpy.uint8)).save(path / f"{number}.png")
    mask = numpy.zeros((70, 100), dtype=numpy.uint8)
    mask[20:50, 10:60] = 255
    Image.fromarray(mask).save(path / "1.mask.png")
    (path / "1.txt").write_text("a photo of\na red star")
    whole = (path / "2.png").read_bytes()
    (path / "2.png").write_bytes(whole[: len(whole) // 2])
    (path / "notes.md").write_text("no picture")
    return "many"


def train(tiny, folder, name, model=None, teller=None, **changes):
    settings = SubjectSettings(**{**SMALL, "steps": 3, **changes})
    torch.manual_seed(0)
    encoder = ReferenceEncoder(torch.nn.Linear(128, 128), torch.randn(1, 1, 128), 128).requires_grad_(False)
    teller = teller or Teller(encoder, tiny.clip_vision)
    photos = Photos(folder=folder)
    return train_subject(model or tiny.inpaint_model, tiny.vae, photos, name, settings, teller, "overwrite")


def test_broken_pictures_are_named_skipped_and_counted(tiny, folder, caplog, monkeypatch):
    monkeypatch.setattr(subject_data, "STRETCH", 4)
    said = []
    monkeypatch.setattr(subject_job, "show_sentence", said.append)
    with torch.inference_mode(), caplog.at_level(logging.INFO, "inlay"):
        trained = train(tiny, folder, "domain", steps=6)
    assert len(trained.losses) == 6 and trained.preview.shape[1:] == (64, 192, 3)
    assert "picture 2.png cannot be read" in caplog.text and caplog.text.count("cannot be read") == 1
    assert said == ["In this run 1 of 4 pictures could not be read: 2.png"]
    assert caplog.text.count("minutes") == 1
    assert read_lora("domain.safetensors").metadata["inlay.folder"] == "many, 4 pictures"


def test_pictures_come_with_their_masks_and_captions(folder):
    pictures = PictureFolder(folder, seed=0)
    assert len(pictures) == 4 and pictures.has_masks
    photo, caption = pictures.photo(1)
    box = photo.box
    assert (box.left, box.top, box.right, box.bottom) == (10, 20, 60, 50) and caption == "a photo of a red star"
    plain, caption = pictures.photo(0)
    assert plain.mask is None and caption == ""
    box = plain.box
    assert 0 <= box.left < box.right <= 80 and 0 <= box.top < box.bottom <= 90
    assert PictureFolder(folder, seed=0).photo(0)[0].box == box != PictureFolder(folder, seed=1).photo(0)[0].box
    # In the place of a broken one stands the next.
    assert torch.equal(pictures.photo(2)[0].picture, pictures.photo(3)[0].picture)


def test_a_picture_may_be_broken_anywhere(folder, monkeypatch, caplog):
    pictures, real = PictureFolder(folder, seed=0), Image.open

    def broken(path):
        if Path(path).name == "0.png":
            raise zlib.error("Error -3 while decompressing data")
        return real(path)

    monkeypatch.setattr(Image, "open", broken)
    assert torch.equal(pictures.photo(0)[0].picture, pictures.photo(1)[0].picture)
    assert pictures.broken == {0: "0.png"} and "0.png cannot be read (Error -3" in caplog.text


def test_a_cancelled_run_goes_on_to_the_very_same_file(tiny, folder, monkeypatch):
    monkeypatch.setattr(subject_data, "STRETCH", 4)
    whole = open(train(tiny, folder, "stopped", steps=5).path, "rb").read()
    real, count = subject_loop.batch_loss, iter(range(10**6))

    def counted(*args):
        if next(count) == 3:
            comfy.model_management.interrupt_current_processing()
            comfy.model_management.throw_exception_if_processing_interrupted()
        return real(*args)

    with monkeypatch.context() as patch, pytest.raises(comfy.model_management.InterruptProcessingException):
        patch.setattr(subject_loop, "batch_loss", counted)
        train(tiny, folder, "stopped", steps=5)
    assert open(train(tiny, folder, "stopped", steps=5).path, "rb").read() == whole


def test_a_cancel_before_a_later_stretchs_first_step_shows_that_stretch(tiny, folder, monkeypatch):
    monkeypatch.setattr(subject_data, "STRETCH", 4)
    loops, shown, real = [], [], subject_loop.SubjectLoop._train

    def cut(self, *args):
        loops.append(self)
        if len(loops) == 2:
            raise comfy.model_management.InterruptProcessingException
        return real(self, *args)

    with monkeypatch.context() as patch, pytest.raises(comfy.model_management.InterruptProcessingException):
        patch.setattr(subject_loop.SubjectLoop, "_train", cut)
        patch.setattr(subject_job, "keep_pictures", lambda images, *_: shown.append(images))
        train(tiny, folder, "later", steps=6, views=16)
    loop = loops[1]
    assert loop.training.done == 2 and loop.last.item() in loop.data.rows.tolist()
    assert torch.equal(shown[0], loop.data.views.shown[:1].float() / 255)


def test_text_mode_takes_each_pictures_own_caption(tiny, folder, monkeypatch):
    told, real = [], subject_data.FolderSource._items

    def kept(self, rows):
        for item in real(self, rows):
            told.append((item.number, item.caption))
            yield item

    monkeypatch.setattr(subject_data.FolderSource, "_items", kept)
    changes = {"mode": "text", "prompt": "a picture", "steps": 2, "batch": 8, "views": 1}
    trained = train(tiny, folder, "told-folder", tiny.model, Teller(clip=tiny.clip), **changes)
    assert set(told) <= {(0, "a picture"), (1, "a photo of a red star"), (2, "a picture"), (3, "a picture")}
    assert {number for number, _ in told} >= {1} and len(trained.losses) == 2


def test_a_stretch_holds_one_picture_at_a_time_and_the_model_is_prepared_once(tiny, folder, monkeypatch):
    alive, most, prepared = weakref.WeakSet(), [], []
    read, patcher = PictureFolder._read, subject_loop.static_patcher

    def watched(self, number):
        photo = read(self, number)
        alive.add(photo.picture)
        # What Pillow raises of the broken one goes round in circles.
        gc.collect()
        most.append(len(alive))
        return photo

    monkeypatch.setattr(PictureFolder, "_read", watched)
    monkeypatch.setattr(subject_loop, "static_patcher", lambda model: prepared.append(model) or patcher(model))
    monkeypatch.setattr(subject_data, "STRETCH", 4)
    assert len(train(tiny, folder, "few", steps=6, views=4).losses) == 6
    # The one before is let go when the next is asked for.
    assert len(most) > 3 and max(most) <= 2 and len(prepared) == 1


def test_a_folder_is_told_from_another_by_its_masks_and_captions_too(folder, tmp_path, monkeypatch):
    root = Path(folder_paths.get_input_directory())
    copy = shutil.copytree(root / folder, root / "copied")
    of_copy = PictureFolder("copied", seed=0).fingerprint()
    assert of_copy == PictureFolder(folder, seed=0).fingerprint()
    stamp = folder_stamp("copied")
    for name, file, data in (
        ("captions", "1.txt", b"a photo of\na red moon"),
        ("masks in the folder", "1.mask.png", (copy / "1.mask.png").read_bytes()[:-1] + b"-"),
        ("pictures in the folder", "0.png", b"other"),
    ):
        before = (copy / file).read_bytes()
        (copy / file).write_bytes(data)
        now = PictureFolder("copied", seed=0).fingerprint()
        assert [key for key in now if now[key] != of_copy[key]] == [name]
        (copy / file).write_bytes(before)
    assert folder_stamp("copied") != stamp
    assert folder_stamp("nowhere") is folder_stamp("../..") is None


def test_another_caption_or_vae_does_not_go_on(tiny, folder, monkeypatch):
    from inlay.host import demo_models as build

    root = Path(folder_paths.get_input_directory())
    copy = shutil.copytree(root / folder, root / "resumed")
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="out"):
        real, count = subject_loop.batch_loss, iter(range(10**6))
        patch.setattr(subject_loop, "batch_loss", lambda *args: real(*args) if next(count) < 2 else _out())
        train(tiny, "resumed", "other-parts")
    (copy / "1.txt").write_text("a drawing")
    with monkeypatch.context() as patch, pytest.raises(ValueError, match=r"another recipe \(captions, vae\)"):
        patch.setattr(tiny, "vae", build.build_vae(build.build_autoencoder(seed=55).state_dict()))
        train(tiny, "resumed", "other-parts")


def _out():
    raise RuntimeError("out")


def test_epochs_times_repeats_are_steps(tiny, folder):
    trained = train(tiny, folder, "epochs", epochs=2, repeats=1, batch=2)
    assert len(trained.losses) == 4


def test_bad_folders_are_refused(tiny, folder):
    root = Path(folder_paths.get_input_directory())
    (root / "empty").mkdir(exist_ok=True)
    (root / "bad").mkdir(exist_ok=True)
    (root / "bad" / "a.png").write_bytes(b"nothing")
    for name, words in [
        ("../..", "outside the input folder"),
        ("nowhere", 'no folder "nowhere"'),
        ("empty", "holds no pictures"),
        ("bad", "None of the 1 pictures"),
    ]:
        with pytest.raises(ValueError, match=words):
            train(tiny, name, "never-folder")
    with pytest.raises(ValueError, match="masked loss needs masks.*bad"):
        train(tiny, "bad", "never-folder", masked_loss=True)
    both = Photos([torch.rand(1, 64, 64, 3)], folder=folder)
    with pytest.raises(ValueError, match="photos and a folder"):
        both.read(False)
    assert folder_paths.get_full_path("loras", "never-folder.safetensors") is None


def test_a_folder_whose_pictures_all_have_captions_needs_no_prompt(tiny, tmp_path):
    path = Path(folder_paths.get_input_directory(), "captioned")
    path.mkdir(parents=True)
    for number in range(2):
        Image.fromarray(numpy.full((64, 64, 3), 40 * number + 60, dtype=numpy.uint8)).save(path / f"{number}.png")
        (path / f"{number}.txt").write_text(f"a photo of {number}")
    job = {"model": tiny.model, "teller": Teller(clip=tiny.clip), "mode": "text", "steps": 1}
    try:
        trained = train(tiny, "captioned", "captioned", **job)
        assert len(trained.losses) == 1 and "inlay.prompt" not in trained.lora.metadata
        (path / "1.txt").write_text(" ")
        with pytest.raises(ValueError, match="There is no prompt"):
            train(tiny, "captioned", "captioned", **job)
    finally:
        shutil.rmtree(path)
