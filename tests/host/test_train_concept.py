"""Learning a concept through the real host: objectives, gradients, settings, and models left as they were."""

import json
from collections import namedtuple

import comfy.cli_args
import comfy.model_management
import comfy.utils
import pytest
import torch
from inlay.host import concept_examples, concept_loop
from inlay.host.activations import activations_kept
from inlay.host.concept_training import concept_at_steps
from inlay.host.decoders import full_decoder
from inlay.host.together import SHARE, examples_together
from inlay.nodes.train_concept import TrainConcept
from inlay.training.concept import ConceptSettings
from inlay.training.objectives import OBJECTIVES

from .train_concept_setup import (  # noqa: F401
    HEIGHT,
    IMAGES,
    PAIR,
    QUICK,
    WIDTH,
    fixture_folder,
    fixture_learn,
    fixture_short_samples,
    saved,
)


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
    plain = concept_examples.draw_example
    monkeypatch.setattr(concept_examples, "draw_example", lambda seed, step, *rest: plain(seed, 0, *rest))
    losses = learn(steps=6, learning_rate=0.02).losses
    assert losses[-1] < losses[0] and losses[1] < losses[0]


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


def test_the_models_are_left_as_they_were(learn, tiny, sample):
    before = sample(tiny.model, steps=1, size=(8, 8))
    state = {key: value.clone() for key, value in tiny.clip.cond_stage_model.state_dict().items()}
    learn(precision="bf16", checkpointing=True, steps=1)
    assert torch.equal(sample(tiny.model, steps=1, size=(8, 8)), before)
    assert all(torch.equal(state[key], value) for key, value in tiny.clip.cond_stage_model.state_dict().items())


def test_what_another_pack_notes_on_the_model_stays_what_it_is(learn, tiny):
    Note = namedtuple("Note", "name value")
    noted = tiny.model.clone()
    noted.model_options["another_pack"] = [Note("strength", torch.ones(1))]
    assert torch.equal(saved(learn(model=noted))["clip_l"], saved(learn())["clip_l"])


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


def test_flash_attention_hides_what_backward_keeps(tiny, monkeypatch):
    """The host then reserves less for a forward than backward keeps of it."""
    latent = torch.zeros(1, 4, 8, 8)
    monkeypatch.setattr(comfy.model_management, "xformers_enabled", lambda: False)
    monkeypatch.setattr(comfy.model_management, "pytorch_attention_flash_attention", lambda: True)
    row = tiny.model.model.memory_required([1, *latent.shape[1:]])
    total = (tiny.model.model_size() + 50 * row) / SHARE
    monkeypatch.setattr(comfy.model_management, "get_total_memory", lambda *_: total)
    assert examples_together(tiny.model, latent, 8) == 2


def test_what_the_decoder_keeps_counts_where_pictures_are_decoded(learn, tiny, monkeypatch):
    latent = torch.zeros(1, 4, 5, 6)
    plain = tiny.model.model.memory_required([activations_kept(), *latent.shape[1:]])
    decoded = full_decoder(tiny.vae, tiny.model.model.latent_format).row_bytes(latent.shape[1:])
    assert decoded > plain
    total = (tiny.model.model_size() + 4.5 * plain) / SHARE
    monkeypatch.setattr(comfy.model_management, "get_total_memory", lambda *_: total)
    found, step = [], concept_loop.ConceptLoop._step
    monkeypatch.setattr(concept_loop.ConceptLoop, "_step", lambda loop: found.append(loop.at_once) or step(loop))
    for objective in ("latent", "pixel"):
        learn(objective=objective, steps=1, accumulation=8)
    assert found == [4, int(4.5 * plain / (plain + decoded)) or 1]


@pytest.mark.parametrize("map_average", [0.0, 0.9])
def test_out_of_memory_halves_what_goes_at_once(learn, monkeypatch, caplog, map_average):
    settings = {"accumulation": 4, "images": PAIR, "map_average": map_average}
    single = learn(at_once=1, **settings)
    plain, sizes, most = concept_loop.objective_loss, [], 1

    def full(objective, estimate, *rest):
        sizes.append(len(estimate.denoised))
        # After the masks were read, which must not count twice.
        loss = plain(objective, estimate, *rest)
        if sizes[-1] > most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return loss

    monkeypatch.setattr(concept_loop, "objective_loss", full)
    learned = learn(at_once=100, **settings)
    assert sizes == [4, 2] + 8 * [1]
    assert learned.losses == single.losses and torch.equal(learned.mask, single.mask)
    assert "Going on with 1 noised pictures at once" in caplog.text
    most = 0
    with pytest.raises(torch.cuda.OutOfMemoryError):
        learn(**settings)


def test_a_step_that_is_not_a_number_is_left_out(learn, monkeypatch):
    plain, calls = concept_loop.objective_loss, []

    def odd(*args):
        calls.append(1)
        return plain(*args) * (float("nan") if len(calls) == 2 else 1)

    whole = learn(steps=1)
    monkeypatch.setattr(concept_loop, "objective_loss", odd)
    learned = learn(steps=2)
    assert learned.losses == whole.losses and torch.equal(saved(learned)["clip_l"], saved(whole)["clip_l"])
    assert torch.equal(learned.mask, whole.mask)


def test_a_step_that_is_left_out_counts_for_no_mask(learn, monkeypatch):
    plain, calls, loops, run = concept_loop.objective_loss, [], [], concept_loop.ConceptLoop.run

    def odd(*args):
        calls.append(1)
        return plain(*args) * (float("nan") if len(calls) == 2 else 1)

    monkeypatch.setattr(concept_loop, "objective_loss", odd)
    monkeypatch.setattr(concept_loop.ConceptLoop, "run", lambda loop, *args: loops.append(loop) or run(loop, *args))
    learn(steps=3)
    assert len(calls) == 3 and loops[0].saliency.uses.sum() == 2


def test_the_live_preview_shows_a_sample_whatever_the_host_previews(learn, monkeypatch):
    assert comfy.cli_args.args.preview_method == comfy.cli_args.LatentPreviewMethod.NoPreviews
    shown = []
    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", lambda *args, **_: shown.append(args[2]), raising=False)
    learn(steps=2, preview_every=2)
    ((_, picture, _),) = filter(None, shown)
    assert picture.size == (3 * WIDTH, HEIGHT)
    assert picture.crop((2 * WIDTH, 0, 3 * WIDTH, HEIGHT)).convert("L").getextrema()[1] > 0


def test_what_is_learned_up_to_some_steps(learn, tiny, folder):
    settings = ConceptSettings(**{**QUICK, "steps": 3})
    found = concept_at_steps(tiny.model, tiny.clip, tiny.vae, IMAGES, settings, (0, 2, 3))
    assert list(found) == [0, 2, 3] and not list(folder.rglob("*.safetensors"))
    for steps in (2, 3):
        assert torch.equal(found[steps][0][0], learn(steps=steps).conditioning[0][0])
    assert not torch.equal(found[0][0][0], found[2][0][0])


def test_precisions(learn):
    # Without the focus, whose mask has edges that rounding can move by a whole cell.
    plain = learn(objective="multi").losses
    for precision in ("bf16", "fp16", "fp32"):
        losses = learn(objective="multi", precision=precision).losses
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


def test_the_node_gives_the_hosts_types(tiny, folder):
    with torch.inference_mode():
        prompt, conditioning, mask, loss_map, preview = TrainConcept.execute(
            tiny.model, tiny.clip, tiny.vae, IMAGES, "cat", "error", **QUICK
        ).args
    assert prompt == "embedding:cat" and conditioning[0][0].shape == (1, 77, 128)
    assert list(loss_map) == ["loss"] and json.dumps(loss_map) and len(loss_map["loss"]) == 2
    assert 0 <= mask.min() and mask.max() <= 1 and preview.shape[0] == 1
