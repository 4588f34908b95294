"""Learning a concept through the real host: objectives, files, resuming, and models left as they were."""

import json
import logging
import re
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import comfy.samplers
import comfy.sd1_clip
import comfy.supported_models
import comfy.utils
import folder_paths
import pytest
import torch
from inlay.host import concept_loop
from inlay.host import demo_models as build
from inlay.host.concept_training import concept_at_steps, learn_concept
from inlay.host.embedding_files import embedding_name
from inlay.host.together import examples_together
from inlay.nodes.train_concept import TrainConcept
from inlay.training.concept import ConceptSettings
from inlay.training.objectives import OBJECTIVES

HEIGHT, WIDTH = 36, 44
PAIR = torch.rand(2, HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(0))
IMAGES = PAIR[:1]
QUICK = {"steps": 2, "accumulation": 1, "tokens": 3, "preview_every": 0}


@pytest.fixture(autouse=True)
def short_samples(monkeypatch):
    monkeypatch.setattr(concept_loop, "PREVIEW_STEPS", 1)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Empty folders for embeddings and outputs."""
    monkeypatch.setitem(
        folder_paths.folder_names_and_paths, "embeddings", ([str(tmp_path / "embeddings")], {".safetensors"})
    )
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    return tmp_path


@pytest.fixture
def learn(tiny, folder):
    """learn(name, model=, clip=, images=, masks=, if_exists=, **settings), as the executor runs it."""

    def run(name="cat", model=None, clip=None, images=IMAGES, masks=None, if_exists="number", **settings):
        with torch.inference_mode():
            settings = ConceptSettings(**{**QUICK, **settings})
            return learn_concept(
                model or tiny.model, clip or tiny.clip, tiny.vae, images, name, settings, if_exists, masks
            )

    return run


def saved(learned):
    return comfy.utils.load_torch_file(learned.path)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_trains_the_vectors_it_has(learn, objective):
    learned = learn(objective=objective, images=PAIR)
    (key,) = saved(learned)
    assert key == "clip_l"
    assert saved(learned)[key].shape == (1 if objective == "plain" else 3, 128)
    assert saved(learned)[key].dtype == torch.float32
    assert len(learned.losses) == 2 and torch.tensor(learned.losses).isfinite().all()
    assert learned.mask.shape == (2, HEIGHT, WIDTH) and learned.preview.shape == (1, HEIGHT, 3 * WIDTH, 3)
    assert (learned.mask.min() == 1) == ("focus" not in objective)


def test_the_loss_falls(learn, monkeypatch):
    plain = concept_loop.draw_example
    monkeypatch.setattr(concept_loop, "draw_example", lambda seed, step, *rest: plain(seed, 0, *rest))
    losses = learn(steps=6, learning_rate=0.02).losses
    assert losses[-1] < losses[0] and losses[1] < losses[0]


def test_a_stock_prompt_loads_the_file_without_a_word_and_gives_the_conditioning(learn, tiny, folder, caplog):
    learned = learn("my-cat")
    assert learned.prompt == "embedding:my-cat"
    stock = build.build_text_encoder(
        tiny.clip.cond_stage_model.clip_l.transformer.state_dict(), [str(folder / "embeddings")]
    )
    with caplog.at_level(logging.WARNING), torch.no_grad():
        caplog.clear()
        from nodes import CLIPTextEncode

        ((text, extra),) = CLIPTextEncode().encode(stock, learned.prompt)[0]
    assert caplog.records == []
    assert torch.equal(text, learned.conditioning[0][0])
    assert torch.equal(extra["pooled_output"], learned.conditioning[0][1]["pooled_output"])
    loaded = comfy.sd1_clip.load_embed("my-cat", [str(folder / "embeddings")], 128, "clip_l")
    assert torch.equal(loaded, saved(learned)["clip_l"])


def test_the_same_seed_is_the_same_file_and_another_is_not(learn):
    first, again, other = (learn("cat", seed=seed) for seed in (1, 1, 2))
    assert [one.prompt for one in (first, again, other)] == ["embedding:cat", "embedding:cat-2", "embedding:cat-3"]
    assert Path(first.path).read_bytes() == Path(again.path).read_bytes()
    assert Path(first.path).read_bytes() != Path(other.path).read_bytes()


def test_the_gradient_is_that_of_a_straight_loop(learn, tiny, monkeypatch):
    """One step of `multi`, written anew: 77 tokens, UNet and loss in one graph, VP formulas of the papers."""
    from inlay.host.gradients import differentiable_layers, gradient_phase
    from inlay.training import concept

    kept = {}
    plain_step = concept.ConceptTraining.step

    def step(self, *args):
        kept["start"] = {key: value.detach().clone() for key, value in self.vectors.items()}
        loss = plain_step(self, *args)
        kept["gradient"] = self.vectors["clip_l"].grad.clone()
        return loss

    monkeypatch.setattr(concept.ConceptTraining, "step", step)
    learned = learn(objective="multi", steps=1, accumulation=2, flips=False, seed=3, images=PAIR)
    base, encoder = tiny.model.model, tiny.clip.cond_stage_model
    with torch.no_grad():
        pixels = torch.nn.functional.pad(PAIR.movedim(-1, 1), (0, 4, 0, 4), mode="reflect").movedim(1, -1)
        clean = tiny.vae.encode(pixels) * 0.18215
    with gradient_phase(base, encoder), differentiable_layers(encoder):
        vectors = kept["start"]["clip_l"].requires_grad_()
        ids = [(49406, 1.0), *((vector, 1.0) for vector in vectors), *[(49407, 1.0)] * 73]
        text, _ = encoder.encode_token_weights({"l": [ids]})
        losses = []
        for part in range(2):
            draw = concept.draw_example(3, 0, part, 2, 2, 1000, clean.shape[1:], False)
            sigma = base.model_sampling.sigmas[draw.timestep]
            a, s = 1 / (1 + sigma**2).sqrt(), sigma / (1 + sigma**2).sqrt()
            noised = a * clean[draw.picture] + s * draw.noise
            predicted = base.diffusion_model(noised, torch.tensor([float(draw.timestep)]), context=text)
            losses.append((predicted - draw.noise).square().mean())
        loss = sum(losses) / 2
        (gradient,) = torch.autograd.grad(loss, vectors)
    assert learned.losses == [pytest.approx(float(loss.detach()), rel=1e-4)]
    assert (kept["gradient"] - gradient).norm() < 1e-3 * gradient.norm()
    assert gradient.norm() > 0


def interrupt_in(monkeypatch, step):
    """Presses Cancel in the first part of that step; the second one is the first to notice."""
    plain = concept_loop.draw_example

    def draw(seed, number, part, *rest):
        if (number, part) == (step, 0):
            comfy.model_management.interrupt_current_processing()
        return plain(seed, number, part, *rest)

    monkeypatch.setattr(concept_loop, "draw_example", draw)
    return lambda: monkeypatch.setattr(concept_loop, "draw_example", plain)


def test_cancel_keeps_a_checkpoint_from_which_the_result_is_the_uninterrupted_one(learn, folder, monkeypatch):
    settings = {"steps": 3, "accumulation": 2, "at_once": 1, "images": PAIR}
    whole = learn("whole", **settings)
    release = interrupt_in(monkeypatch, 1)
    shown = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda *args, **_: shown.append(args), raising=False)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        learn("half", **settings)
    release()
    checkpoint = folder / "output" / "inlay" / "half.checkpoint.safetensors"
    assert checkpoint.is_file() and not list((folder / "embeddings").glob("half*"))
    assert shown and shown[-1][2] is not None
    assert len(comfy.utils.load_torch_file(str(checkpoint))["losses"]) == 1
    resumed = learn("half", **settings)
    assert resumed.losses == whole.losses
    assert torch.equal(saved(resumed)["clip_l"], saved(whole)["clip_l"])
    assert torch.equal(resumed.mask, whole.mask)
    assert not checkpoint.exists()
    assert not list(folder.rglob("*.part"))


def test_a_checkpoint_of_other_settings_is_not_resumed(learn, monkeypatch):
    release = interrupt_in(monkeypatch, 0)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        learn("half", seed=5, accumulation=2, at_once=1)
    release()
    other, fresh = (learn(name, seed=6, accumulation=2) for name in ("half", "fresh"))
    assert torch.equal(saved(other)["clip_l"], saved(fresh)["clip_l"])


def test_the_models_are_left_as_they_were(learn, tiny, sample):
    before = sample(tiny.model, steps=1, size=(8, 8))
    state = {key: value.clone() for key, value in tiny.clip.cond_stage_model.state_dict().items()}
    learn(precision="bf16", checkpointing=True, steps=1)
    assert torch.equal(sample(tiny.model, steps=1, size=(8, 8)), before)
    assert all(torch.equal(state[key], value) for key, value in tiny.clip.cond_stage_model.state_dict().items())


def test_checkpointing_changes_nothing(learn):
    assert torch.equal(saved(learn(checkpointing=True))["clip_l"], saved(learn(checkpointing=False))["clip_l"])


@pytest.mark.parametrize("objective", ["saliency focus", "pixel"])
def test_pictures_at_once_change_the_memory_and_not_the_result(learn, objective):
    settings = {"objective": objective, "accumulation": 3, "images": PAIR, "steps": 2}
    single, grouped, auto = (learn(at_once=at_once, **settings) for at_once in (1, 2, 0))
    for other in (grouped, auto):
        assert other.losses == pytest.approx(single.losses, rel=1e-4)
        assert (other.mask - single.mask).abs().max() < 1e-3
    moved = saved(single)["clip_l"] - saved(learn(seed=9, **settings))["clip_l"]
    assert (saved(auto)["clip_l"] - saved(single)["clip_l"]).norm() < 1e-2 * moved.norm()


def test_under_another_packs_patch_pictures_go_one_by_one(tiny):
    latent = torch.zeros(1, 4, 8, 8)
    assert examples_together(tiny.model, latent, 4) == 4
    patched = tiny.model.clone()
    patched.set_model_attn1_patch(lambda n, context, value, step: (n, context, value))
    assert examples_together(patched, latent, 4) == 1
    wrapped = tiny.model.clone()
    wrapped.set_model_unet_function_wrapper(lambda run, step: run(step["input"], step["timestep"], **step["c"]))
    assert examples_together(wrapped, latent, 4) == 1


def test_what_is_learned_up_to_some_steps(learn, tiny, folder):
    settings = ConceptSettings(**{**QUICK, "steps": 3})
    found = concept_at_steps(tiny.model, tiny.clip, tiny.vae, IMAGES, settings, (0, 2, 3))
    assert list(found) == [0, 2, 3] and not list(folder.rglob("*.safetensors"))
    for steps in (2, 3):
        assert torch.equal(found[steps][0][0], learn(steps=steps).conditioning[0][0])
    assert not torch.equal(found[0][0][0], found[2][0][0])


def test_precisions(learn):
    plain = learn().losses
    for precision in ("bf16", "fp16", "fp32"):
        losses = learn(precision=precision).losses
        assert losses == pytest.approx(plain, rel=0.05)
        assert (losses == plain) == (precision == "fp32")


def test_a_users_mask_is_the_mask_used(learn):
    masks = torch.zeros(1, HEIGHT, WIDTH)
    masks[:, 16:32, 16:40] = 1
    learned = learn(masks=masks)
    assert learned.mask.shape == (1, HEIGHT, WIDTH)
    assert learned.mask[:, 20:28, 20:36].min() == 1 and learned.mask[:, :8].max() == 0
    assert saved(learned)["clip_l"].ne(saved(learn())["clip_l"]).any()


def test_a_v_model_and_an_inpainting_model(learn, tiny):
    for model in (tiny.v_model, tiny.inpaint_model):
        learned = learn(model=model, steps=1, accumulation=2)
        assert torch.tensor(learned.losses).isfinite().all()


def test_a_word_to_start_from(learn, tiny):
    near = learn(init_word="red star", steps=1, learning_rate=1e-9)
    table = tiny.clip.cond_stage_model.clip_l.transformer.get_input_embeddings().weight
    ids = [token for token, _, word in tiny.clip.tokenize("red star", return_word_ids=True)["l"][0] if word]
    assert torch.allclose(saved(near)["clip_l"], table[[ids[0], ids[0], ids[1]]], atol=6e-3)


REFUSED = {
    "There is no reference image": {"images": PAIR[:0]},
    "has no salient part": {"threshold": 9.0},
    "has no salient part above the threshold 8": {"threshold": 8.0, "mask_source": "attention to the border"},
    "The VAE turned the picture into values": {"images": PAIR * float("nan")},
    "too small for this VAE": {"images": PAIR[:, :6, :6]},
    "learning rate is 0": {"learning_rate": 0.0},
    "The mask excludes everything": {"masks": torch.zeros(1, HEIGHT, WIDTH)},
    "Mask 2 of 2 excludes everything": {"images": PAIR, "masks": torch.eye(2)[:, :1, None].expand(-1, HEIGHT, WIDTH)},
    "3 masks for 2 pictures": {"images": PAIR, "masks": torch.ones(3, HEIGHT, WIDTH)},
    "mask source is masks": {"mask_source": "masks"},
    "holds parts of a path": {"name": "../cat"},
    "cannot be written": {"name": "my cat"},
    "76 tokens": {"tokens": 76},
}


@pytest.mark.parametrize("words", REFUSED)
def test_bad_input_is_one_sentence_before_the_first_step(learn, folder, monkeypatch, words):
    monkeypatch.setattr(concept_loop.ConceptLoop, "run", lambda _: pytest.fail("it ran"))
    with pytest.raises(ValueError, match=words) as error:
        learn(**REFUSED[words])
    assert len(re.findall(r"\. [A-Z]", str(error.value))) <= 1
    assert not list(folder.rglob("*.safetensors"))


def test_an_encoder_of_another_family(learn, tiny):
    unet = build.build_model(build.build_unet(4, seed=1).state_dict())
    unet.model.model_config.unet_config["context_dim"] = 768
    with pytest.raises(ValueError, match="128 values .* takes 768: they are of different families"):
        learn(model=unet)


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
    with pytest.raises(ValueError, match="loss is not a number in step 1"):
        learn()
    assert not list(folder.rglob("*.safetensors"))


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
    for word in ("", " ", "a b", "a,b", "(cat:1.2)", "a<b", "[x]", ".hidden", "cat.", "con", "nul.x", "C:cat", "a\nb"):
        with pytest.raises(ValueError, match="cannot be written"):
            embedding_name(word, "overwrite")


def test_the_node_gives_the_hosts_types(tiny, folder):
    with torch.inference_mode():
        prompt, conditioning, mask, loss_map, preview = TrainConcept.execute(
            tiny.model, tiny.clip, tiny.vae, IMAGES, "cat", "error", **QUICK
        ).args
    assert prompt == "embedding:cat" and conditioning[0][0].shape == (1, 77, 128)
    assert list(loss_map) == ["loss"] and json.dumps(loss_map) and len(loss_map["loss"]) == 2
    assert 0 <= mask.min() and mask.max() <= 1 and preview.shape[0] == 1
