"""The subject nodes as the executor calls them."""

import json
from pathlib import Path

import folder_paths
import torch
from inlay.attention.boxes import box_mask
from inlay.guidance.reference import ReferenceEncoder
from inlay.host.lora_files import Lora, save_lora
from inlay.nodes.load_subject import CONNECTED, LoadSubject
from inlay.nodes.reference import LoadReferenceModel, ReferenceConditioning
from inlay.nodes.train_subject import TrainSubject


def defaults(node):
    """What the web page sends for the widgets; a box that has to be connected is none."""
    inputs = node.define_schema().inputs
    return {
        one.id: one.default
        for one in inputs
        if getattr(one, "default", None) is not None and not getattr(one, "force_input", None)
    }


def test_a_subject_is_trained_loaded_and_asked_for(tiny, sample):
    torch.manual_seed(0)
    encoder = ReferenceEncoder(torch.nn.Linear(128, 128), torch.randn(1, 1, 128), 128).requires_grad_(False)
    images = [torch.rand(1, 96, 128, 3), torch.rand(1, 128, 96, 3)]
    box = {"x": 20, "y": 30, "width": 40, "height": 40}
    masks = [box_mask([box], *image.shape[1:3])[None] for image in images]
    widgets = {**defaults(TrainSubject), "preset": "custom", "steps": 1, "batch": 1, "resolution": 64, "rank": 2}
    lists = {name: [value] for name, value in widgets.items()}
    parts = {"clip_vision": [tiny.clip_vision], "reference_encoder": [encoder]}
    with torch.inference_mode():
        trained, losses, preview = TrainSubject.execute(
            model=[tiny.inpaint_model], vae=[tiny.vae], images=images, masks=masks, **parts, **lists
        ).args
        again = TrainSubject.execute(
            model=[tiny.inpaint_model], vae=[tiny.vae], images=images, boxes=[box, box], **parts, **lists
        ).args[0]
        chosen = {"lora_file": CONNECTED, "strength": 1.0, "reference_encoder": encoder}
        model, positive, negative = LoadSubject.execute(
            model=tiny.inpaint_model, lora=trained, clip_vision=tiny.clip_vision, reference=images[0], **chosen
        ).args
        told = ReferenceConditioning.execute(encoder, tiny.clip_vision, images[0]).args
        shown = {"reference": images[0], "reference_mask": masks[0], "clip_vision": tiny.clip_vision, **chosen}
        cut = LoadSubject.execute(model=tiny.inpaint_model, lora=trained, **shown).args[1]
    assert not torch.equal(cut[0][0], positive[0][0])
    assert len(losses["loss"]) == 1 and preview.ndim == 4
    assert all(torch.equal(again[key], trained[key]) for key in trained)
    assert torch.equal(positive[0][0], told[0][0][0])
    assert sample(model, positive=positive, negative=negative).isfinite().all()


def test_a_list_of_captions_is_a_line_each(tiny):
    images, others = [torch.rand(1, 64, 80, 3), torch.rand(1, 80, 64, 3)], [torch.rand(2, 64, 64, 3)]
    widgets = {**defaults(TrainSubject), "preset": "custom", "steps": 1, "batch": 1, "resolution": 64, "rank": 2}
    widgets |= {"mode": "text", "views": 1, "resume": False}
    lists = {name: [value] for name, value in widgets.items()}
    parts = {"model": [tiny.model], "vae": [tiny.vae], "clip": [tiny.clip], "images": images, "class_images": others}
    one, several = "a photo of\nan sks star", ["a drawing of a star", "a red star"]
    captions = {"prompt": [one, "a drawing of an sks star"], "class_prompt": several}
    for told, wanted in (
        (captions, ("a photo of an sks star\na drawing of an sks star", "a drawing of a star\na red star")),
        ({"prompt": [one], "class_prompt": several[:1]}, (one, several[0])),
    ):
        with torch.inference_mode():
            lora = TrainSubject.execute(**parts, **{**lists, **told}).args[0]
        recipe = json.loads(lora.metadata["inlay.recipe"])
        assert (recipe["prompt"], recipe["class_prompt"]) == wanted


def test_a_file_that_was_written_again_is_read_again():
    def stamps():
        loaded = LoadSubject.fingerprint_inputs(lora_file="again.safetensors", strength=1.0)
        return loaded, LoadReferenceModel.fingerprint_inputs("checkpoints/none.safetensors", "loras/again.safetensors")

    save_lora(Lora({"a": torch.zeros(2)}, {}), "again")
    first = stamps()
    assert first == stamps() and first[0] is not None and first[1][0] is None
    save_lora(Lora({"a": torch.zeros(3)}, {}), "again")
    assert all(now != before for now, before in zip(stamps(), first, strict=True))
    assert LoadSubject.fingerprint_inputs(lora_file=CONNECTED) is None


def test_a_folder_with_another_picture_is_trained_on_again():
    folder = Path(folder_paths.get_input_directory(), "growing")
    folder.mkdir(parents=True)

    def stamp():
        return TrainSubject.fingerprint_inputs(name=["thing"], folder=["growing"], seed=[0])

    (folder / "a.png").write_bytes(b"a")
    first = stamp()
    assert first == stamp() and first is not None
    (folder / "b.png").write_bytes(b"b")
    assert stamp() != first
    assert TrainSubject.fingerprint_inputs(folder=[""]) is TrainSubject.fingerprint_inputs(folder=[None]) is None
