"""Learning a concept refuses what it cannot learn from in one sentence, and writes nothing."""

import re

import comfy.model_patcher
import comfy.supported_models
import pytest
import torch
from inlay.host import concept_loop
from inlay.host import demo_models as build
from inlay.host.embedding_files import embedding_name, require_alone

from .train_concept_setup import HEIGHT, PAIR, WIDTH, fixture_folder, fixture_learn, fixture_short_samples  # noqa: F401

REFUSED = {
    "There is no reference image": {"images": PAIR[:0]},
    "has no salient part": {"threshold": 9.0},
    "has no salient part above the threshold 8": {"threshold": 8.0, "mask_source": "attention to the border"},
    "The VAE turned the picture into values": {"images": PAIR * float("nan")},
    "too small for this VAE": {"images": PAIR[:, :6, :6]},
    "learning rate is 0": {"learning_rate": 0.0},
    "weight of saliency focus alone is 0": {"objective": "saliency focus alone", "weight": 0.0},
    "The mask excludes everything": {"masks": torch.zeros(1, HEIGHT, WIDTH)},
    "Mask 2 of 2 excludes everything": {"images": PAIR, "masks": torch.eye(2)[:, :1, None].expand(-1, HEIGHT, WIDTH)},
    "3 masks for 2 pictures": {"images": PAIR, "masks": torch.ones(3, HEIGHT, WIDTH)},
    "mask source is masks": {"mask_source": "masks"},
    "holds parts of a path": {"name": "../cat"},
    "cannot be written": {"name": "my cat"},
    "76 tokens": {"tokens": 76},
    '"a photo" does not hold {} once': {"template": "a photo"},
    '"{} on {}" does not hold {} once': {"sentence": "{} on {}"},
    "70 tokens beside 6 of its sentence": {"tokens": 70, "template": "{}\na photo of {} on a beach"},
    "72 tokens beside 4 of its sentence": {"tokens": 72, "sentence": "a photo of one {}"},
    '"a photo of ({}:1.3)" holds {} inside brackets': {"sentence": "a photo of ({}:1.3)"},
    '"(a {} (on a) beach" holds {} inside brackets': {"template": "{}\n(a {} (on a) beach"},
}


@pytest.mark.parametrize("words", REFUSED)
def test_bad_input_is_one_sentence_before_the_first_step(learn, folder, monkeypatch, words):
    monkeypatch.setattr(concept_loop.ConceptLoop, "run", lambda _: pytest.fail("it ran"))
    with pytest.raises(ValueError, match=re.escape(words)) as error:
        learn(**REFUSED[words])
    assert len(re.findall(r"\. [A-Z]", str(error.value))) <= 1
    assert not list(folder.rglob("*.safetensors"))


def test_an_encoder_of_another_family(learn, tiny):
    unet = build.build_model(build.build_unet(4, seed=1).state_dict())
    unet.model.model_config.unet_config["context_dim"] = 768
    with pytest.raises(ValueError, match="texts are 128 wide and the model takes 768. Connect the CLIP that belongs"):
        learn(model=unet)


def test_a_vae_of_another_family(learn, tiny, monkeypatch):
    monkeypatch.setattr(type(tiny.vae), "encode", lambda *_: pytest.fail("it encoded"))
    monkeypatch.setattr(tiny.vae, "latent_channels", 16)
    with pytest.raises(ValueError, match="VAE has 16 latent channels and the model 4. Connect the VAE that belongs"):
        learn()


def test_models_that_learn_no_concept(learn, folder):
    from .test_region_pixart import build as build_pixart

    config = comfy.supported_models.SD3(
        {"in_channels": 16, "depth": 1, "input_size": 8, "num_patches": 16, "adm_in_channels": 16}
    )
    config.set_inference_dtype(torch.float32, None)
    cpu = torch.device("cpu")
    joint = comfy.model_patcher.ModelPatcher(config.get_model({}, device=cpu), load_device=cpu, offload_device=cpu)
    advice = "for learning a concept.* Use an SD1.x, SD2.x or SDXL model.$"
    for model, words in ((joint, "SD3 has no separate cross-attention"), (build_pixart(), "PixArt's blocks take no")):
        with pytest.raises(ValueError, match=f"{words} .*{advice}"):
            learn(model=model)
    assert not list(folder.rglob("*.safetensors"))


def test_a_loss_that_is_not_a_number_writes_nothing(learn, folder, monkeypatch):
    monkeypatch.setattr(concept_loop, "objective_loss", lambda *args: args[1].denoised.sum() * float("nan"))
    with pytest.raises(ValueError, match="loss was not a number in any step. Lower the learning rate"):
        learn()
    with pytest.raises(ValueError, match="loss is not a number in step 3. Lower the learning rate"):
        learn(steps=4)
    assert not list(folder.rglob("*.safetensors"))


def test_an_overflowing_vae_in_fp16_has_a_sentence_of_its_own(learn, tiny, monkeypatch):
    monkeypatch.setattr(concept_loop, "objective_loss", lambda *args: args[1].denoised.sum() * float("nan"))
    monkeypatch.setattr(tiny.vae, "vae_dtype", torch.float16)
    monkeypatch.setattr(type(tiny.vae), "encode", lambda *_: torch.zeros(1, 4, 5, 6))
    with pytest.raises(ValueError, match="The VAE's decoder overflows in fp16, most likely: run the VAE in higher"):
        learn(objective="pixel")
    with pytest.raises(ValueError, match="Lower the learning rate"):
        learn(objective="latent")


def test_a_name_below_an_embeddings_folder_is_taken_as_the_host_finds_it(folder):
    below = folder / "embeddings" / "mine" / "cats"
    below.mkdir(parents=True)
    (below / "cat.pt").touch()
    assert embedding_name("cat", "number") == "cat-2"
    with pytest.raises(ValueError, match='concept "cat" already'):
        embedding_name("cat", "error")


def test_no_file_is_overwritten_whose_name_lies_elsewhere_too(learn, folder):
    top = folder / "embeddings"
    (top / "mine").mkdir(parents=True)
    for beside in ("cat.safetensors", "cat.pt"):
        (top / beside).touch()
        require_alone("cat")
    (top / "mine" / "cat.safetensors").touch()
    with pytest.raises(ValueError, match=r'^Another concept "cat" lies at .*mine.cat.safetensors, .* Choose another'):
        learn("cat", if_exists="overwrite")
    assert (top / "cat.safetensors").stat().st_size == 0
    (top / "dog").touch()
    with pytest.raises(ValueError, match='Another concept "dog" lies at'):
        require_alone("dog")


def test_names(folder):
    (folder / "embeddings").mkdir()
    for taken in ("cat.safetensors", "cat-2.pt", "dog.bin"):
        (folder / "embeddings" / taken).touch()
    assert embedding_name("cat", "number") == "cat-3"
    assert embedding_name("cat.safetensors", "overwrite") == "cat"
    assert embedding_name("bird", "error") == "bird"
    with pytest.raises(ValueError, match='concept "dog" already'):
        embedding_name("dog", "error")
    for path in ("a/b", "..", "a\\b", "/etc/passwd", "..\\cat", "../../cat"):
        with pytest.raises(ValueError, match="path"):
            embedding_name(path, "overwrite")
    assert embedding_name("x" * 200, "overwrite") == "x" * 200
    for long, told in (("x" * 201, 201), ("é" * 101, 202)):
        with pytest.raises(ValueError, match=f"has {told} bytes and a file takes 200"):
            embedding_name(long, "number")
    for word in ("", " ", "a b", "a,b", "(cat:1.2)", "a<b", "[x]", ".hidden", "cat.", "con", "nul.x", "C:cat", "a\nb"):
        with pytest.raises(ValueError, match="cannot be written"):
            embedding_name(word, "overwrite")
