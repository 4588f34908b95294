"""The swap on tiny models of the real host: against a plain loop over apply_model, and by what it promises."""

from dataclasses import replace

import comfy.model_management
import pytest
import torch
from comfy.model_sampling import CONST
from inlay.guidance.distillation import SCALE, draw_timesteps
from inlay.guidance.noise import CandidateNoise
from inlay.host import swap as swap_module
from inlay.host.branches import stack_texts
from inlay.host.concept_region_patch import concept_region
from inlay.host.swap import SwapSettings, SwapTexts, swap_picture

TEXTS = SwapTexts("a red star on a beach", "a blue robot on a beach", "red star", "blue robot")
QUICK = SwapSettings(iterations=10, skip=5, seed=3)
BOX = {"x": 21, "y": 12, "width": 30, "height": 33}


@pytest.fixture(scope="module")
def picture():
    return torch.rand(1, 64, 72, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def mask():
    mask = torch.zeros(1, 64, 72)
    mask[:, 12:45, 21:51] = 1
    return mask


@pytest.fixture
def swap(tiny, picture, mask):
    def run(
        settings=QUICK, texts=TEXTS, model=None, target_model=None, image=picture, mask=mask, clip=tiny.clip, **more
    ):
        model = model or tiny.model
        return swap_picture(model, target_model, clip, tiny.vae, image, mask, texts, settings, **more)

    return run


@pytest.fixture
def forwards(monkeypatch):
    """Rows of every call of a UNet."""
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    rows, real = [], UNetModel.forward

    def counted(self, x, *args, **kwargs):
        rows.append(len(x))
        return real(self, x, *args, **kwargs)

    monkeypatch.setattr(UNetModel, "forward", counted)
    return rows


@torch.no_grad()
def plain_loop(model, target_model, latent, encode, settings, boxed=True):
    """InstantSwap row by row: one text, one latent, one apply_model at a time; SGD steps one by one."""
    base = model.model
    clean = base.process_latent_in(latent)
    timesteps = draw_timesteps(settings.iterations, settings.t_min, settings.t_max, settings.timesteps, settings.seed)
    noise = CandidateNoise(settings.seed, range(len(latent)))
    cells = torch.zeros(1, 1, 8, 9)
    cells[..., 1:6, 2:7] = 1  # floor(12/8) .. ceil(45/8), floor(21/8) .. ceil(51/8)
    z = clean.clone()
    for i, t in enumerate(timesteps.tolist()):
        if i % settings.skip == 0:
            sigma = base.model_sampling.sigma(torch.tensor(float(t)))
            eps = noise.draw(clean, "swap", i)
            guided = []
            for patcher, start, prompt, phrase in (
                (model, clean, TEXTS.source, TEXTS.source_concept),
                (target_model, z, TEXTS.target, TEXTS.target_concept),
            ):
                if boxed:
                    patcher = concept_region(patcher, [encode(phrase)[0][0]], [BOX], (64, 72), settings.outside)
                x = start + sigma * eps
                out = []
                for text in (prompt, ""):
                    out.append((x - forward(patcher, x, sigma, encode(text))) / sigma)
                guided.append(out[1] + settings.guidance * (out[0] - out[1]))
            g = (guided[1] - guided[0]) * (cells if boxed else 1)
        z = z - settings.learning_rate * SCALE * g
    return base.process_latent_out(z)


def forward(patcher, x, sigma, text):
    """x0 for one CONDITIONING, through a one-step sampler that gives back the model's first answer."""
    import comfy.samplers

    guider = comfy.samplers.CFGGuider(patcher)
    guider.set_conds(text, text)
    answer = []

    def ask(denoiser, _, sigmas, extra_args, callback, disable):
        answer.append(denoiser(x, sigma.repeat(len(x)), **extra_args))
        return x

    sigmas = torch.stack([sigma, torch.zeros(())])
    guider.sample(torch.zeros_like(x), x, comfy.samplers.KSAMPLER(ask), sigmas, disable_pbar=True, seed=0)
    return answer[0]


def latent_of(tiny, picture):
    return tiny.vae.encode(picture)


def close(ours, want, start):
    assert (want - start).norm() > 0
    return (ours - want).norm() < 1e-3 * (want - start).norm()


def test_the_swap_is_the_plain_loop(tiny, encode, swap, picture, forwards):
    _, latent = swap()
    assert forwards == [4, 4]
    want = plain_loop(tiny.model, tiny.model, latent_of(tiny, picture), encode, QUICK)
    assert close(latent["samples"], want, latent_of(tiny, picture))


def test_v_models(tiny, encode, swap, picture):
    _, latent = swap(model=tiny.v_model)
    want = plain_loop(tiny.v_model, tiny.v_model, latent_of(tiny, picture), encode, QUICK)
    assert close(latent["samples"], want, latent_of(tiny, picture))


def test_two_models(tiny, encode, swap, picture, forwards):
    other = tiny.model.clone()
    other.add_patches({"diffusion_model.middle_block.1.proj_out.weight": (torch.full((128, 128, 1, 1), 0.01),)}, 1.0)
    _, latent = swap(target_model=other)
    assert forwards == [2, 2, 2, 2]
    want = plain_loop(tiny.model, other, latent_of(tiny, picture), encode, QUICK)
    same = plain_loop(tiny.model, tiny.model, latent_of(tiny, picture), encode, QUICK)
    assert close(latent["samples"], want, latent_of(tiny, picture))
    assert not close(latent["samples"], same, latent_of(tiny, picture))


def test_raw_needs_no_negative(tiny, encode, swap, picture, forwards):
    """No text but the phrases acts, so the prompt's rows and the negative's are the same, unless something differs."""
    raw = replace(QUICK, outside="raw")
    _, latent = swap(raw)
    assert forwards == [2, 2]
    want = plain_loop(tiny.model, tiny.model, latent_of(tiny, picture), encode, raw)
    assert close(latent["samples"], want, latent_of(tiny, picture))
    guided, tapped = tiny.model.clone(), tiny.model.clone()
    guided.set_model_sampler_post_cfg_function(lambda args: args["denoised"])
    tapped.set_model_attn1_output_patch(lambda n, step: n)
    for settings, model in (
        (raw, guided),
        (raw, tapped),
        (replace(raw, rows="conditional"), tiny.model),
        (replace(raw, secr="target"), tiny.model),
    ):
        forwards.clear()
        swap(settings, model=model)
        assert forwards == [4, 4]


def test_a_cpu_attends_with_pytorchs_own_unless_told_otherwise(swap, monkeypatch):
    from comfy.cli_args import args
    from comfy.ldm.modules import attention

    calls, real = [], attention.attention_pytorch
    monkeypatch.setattr(attention, "attention_pytorch", lambda *a, **k: calls.append(1) or real(*a, **k))
    fused = swap()[1]["samples"]
    assert calls
    calls.clear()
    monkeypatch.setattr(args, "use_quad_cross_attention", True)
    sliced = swap()[1]["samples"]
    assert not calls and (fused - sliced).abs().max() < 1e-4


def test_the_learning_rate_is_the_length_of_the_updates(tiny, swap, picture):
    start = latent_of(tiny, picture)
    whole, half = (swap(replace(QUICK, iterations=5, learning_rate=rate))[1]["samples"] for rate in (0.1, 0.05))
    assert (whole - start).abs().max() > 1e-3
    assert torch.allclose(whole - start, 2 * (half - start), atol=1e-5)


def test_dds_without_box(tiny, encode, swap, picture):
    _, latent = swap(replace(QUICK, method="dds", timesteps="unsorted", t_min=50, t_max=948, skip=3))
    settings = replace(QUICK, timesteps="unsorted", t_min=50, t_max=948, skip=3)
    want = plain_loop(tiny.model, tiny.model, latent_of(tiny, picture), encode, settings, boxed=False)
    assert close(latent["samples"], want, latent_of(tiny, picture))


def test_a_batch_of_pictures_is_its_pictures(swap, picture, mask, forwards):
    """Row 0 alone and in a batch, each with its own box; the branches of both pictures share one forward."""
    masks = torch.cat([mask, mask.roll(8, 2)])
    both = swap(image=torch.cat([picture, picture.flip(2)]), mask=masks)[1]["samples"]
    assert forwards == [8, 8]
    alone = swap()[1]["samples"]
    assert (both[:1] - alone).abs().max() < 1e-4


@pytest.mark.parametrize("outside", ["ca", "raw"])
def test_outside_the_box_nothing_moves(tiny, swap, picture, mask, outside):
    image, latent = swap(replace(QUICK, outside=outside))
    cells = torch.zeros(8, 9, dtype=torch.bool)
    cells[1:6, 2:7] = True
    start, samples = latent_of(tiny, picture), latent["samples"]
    assert torch.equal(samples[..., ~cells], start[..., ~cells])
    assert not (samples[..., cells] == start[..., cells]).any()
    kept = mask[0] == 0
    assert torch.equal(image[0][kept], picture[0][kept])
    assert not torch.equal(image[0][~kept], picture[0][~kept])


def test_paste_can_be_left_out(tiny, swap, picture):
    image, latent = swap(replace(QUICK, paste="none"))
    assert torch.equal(image, tiny.vae.decode(latent["samples"]))
    feathered, _ = swap(replace(QUICK, paste="feather"))
    outside = torch.ones(64, 72, dtype=torch.bool)
    outside[12:45, 21:51] = False
    assert torch.equal(feathered[0][outside], picture[0][outside])


def test_sizes_that_the_vae_cannot_take(swap, picture, mask):
    image, latent = swap(image=picture[:, :61, :70], mask=mask[:, :61, :70])
    assert image.shape == (1, 61, 70, 3) and latent["samples"].shape[-2:] == (8, 9)


def test_a_bbox_takes_the_masks_place(swap, mask):
    with_box = swap(mask=torch.ones_like(mask), bbox=[[BOX]])[1]["samples"]
    assert torch.equal(with_box, swap()[1]["samples"])


def test_a_box_smaller_than_a_cell_moves_one_cell(tiny, swap, picture):
    _, latent = swap(bbox={"x": 17, "y": 25, "width": 1, "height": 2})
    moved = (latent["samples"] != latent_of(tiny, picture)).any(1)[0]
    assert moved.nonzero().tolist() == [[3, 2]]


def test_seeds_repeat_and_differ(swap):
    first, again, other = (swap(replace(QUICK, seed=seed))[1]["samples"] for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.allclose(first, other)


def test_each_anchor_has_its_own_noise_and_timestep(swap, monkeypatch):
    seen = []
    real = swap_module.Forward.noises
    monkeypatch.setattr(
        swap_module.Forward,
        "noises",
        lambda self, z, noise, sigma: seen.append((noise, sigma)) or real(self, z, noise, sigma),
    )
    swap(replace(QUICK, iterations=12, skip=4))
    noises, sigmas = zip(*seen, strict=True)
    assert len(seen) == 3 and sigmas[0] > sigmas[1] > sigmas[2]
    assert abs(torch.stack(noises).flatten(1).corrcoef() - torch.eye(3)).max() < 0.2


@pytest.mark.parametrize(
    ("settings", "rows"),
    [
        (replace(QUICK, method="sds"), [2, 2]),
        (replace(QUICK, method="dds", guidance=1.0), [2, 2]),
        (replace(QUICK, skip=1, iterations=3), [4, 4, 4]),
        (replace(QUICK, method="cds", seed=2**64 - 1), [4, 2, 4, 2]),
    ],
)
def test_forwards_of_each_method(swap, forwards, settings, rows):
    swap(settings)
    assert forwards == rows


def test_regions_and_masking_are_optional_parts(swap):
    settings = [replace(QUICK, secr=secr) for secr in ("both", "source", "target", "off")]
    settings += [
        replace(QUICK, rows="conditional"),
        replace(QUICK, bgm="off"),
        replace(QUICK, timesteps="ladder"),
        replace(QUICK, momentum=0.5),
    ]
    results = [swap(one)[1]["samples"] for one in settings]
    for number, one in enumerate(results):
        assert not any(torch.allclose(one, other, atol=1e-5) for other in results[:number])
    assert torch.equal(results[0], swap()[1]["samples"])


def test_removal_and_insertion_take_empty_phrases(swap):
    removed = swap(texts=replace(TEXTS, target="", target_concept=""))[1]["samples"]
    inserted = swap(texts=replace(TEXTS, source="", source_concept=""))[1]["samples"]
    assert removed.isfinite().all() and inserted.isfinite().all() and not torch.allclose(removed, inserted)


def test_cds_under_the_executors_inference_mode(swap, tiny):
    """The contrast changes the result, its gradient passes the executor's mode, the model works as before after it."""
    with torch.inference_mode():
        plain = swap(replace(QUICK, method="cds", contrast=0.0))[1]["samples"]
        ours = swap(replace(QUICK, method="cds"))[1]["samples"]
        again = swap(replace(QUICK, method="dds"))[1]["samples"]
    assert ours.isfinite().all() and not torch.allclose(ours, plain)
    assert torch.allclose(plain, again)


def test_the_contrast_gradient_by_finite_differences(tiny, encode, picture):
    from inlay.guidance.contrastive import patch_nce
    from inlay.host.branches import inside_sampling
    from inlay.host.contrast import contrast_gradient
    from inlay.host.unet_blocks import grid_of

    texts = [encode(TEXTS.source), encode(TEXTS.target)]
    kept = []

    def keep(n, step):
        if step["block"][0] == "output":
            kept.append((n, *grid_of(step, n.shape[1])))
        return n

    tapped = tiny.model.clone()
    tapped.set_model_attn1_output_patch(keep)

    def body(forward, clean, sigmas):
        generator = torch.Generator().manual_seed(0)
        noise, target = torch.randn(2, *clean.shape, generator=generator)

        def loss(z):
            kept.clear()
            forward.noises([clean, z], noise, sigmas[0])
            draws = torch.Generator().manual_seed(1)
            # Rows: the negative's source and target, then the prompts'.
            return float(sum(patch_nce(n[3:], n[2:3], h, w, draws) for n, h, w in kept))

        gradient = contrast_gradient(forward, target, clean, noise, sigmas[0], torch.Generator().manual_seed(1))
        step = 0.1 * gradient / gradient.norm()
        want = (loss(target + step) - loss(target - step)) / 2
        assert float((gradient * step).sum()) == pytest.approx(want, rel=0.02)

    with torch.no_grad():
        latent = tiny.vae.encode(picture)
        inside_sampling(tapped, texts, encode(""), latent, torch.tensor([1.0]), 7.5, 0, body)


def test_sdxl_gets_each_branchs_pooled_text(swap, tiny, encode, picture, monkeypatch, forwards):
    model = tiny_sdxl()

    def with_pooled(text):
        seed = sum(map(ord, text))
        pooled = torch.randn(1, 1280, generator=torch.Generator().manual_seed(seed))
        return [[encode(text)[0][0], {"pooled_output": pooled}]]

    monkeypatch.setattr(swap_module, "encode_text", lambda clip, text: with_pooled(text))
    _, latent = swap(model=model)
    assert forwards == [4, 4]
    start = latent_of(tiny, picture)
    assert close(latent["samples"], plain_loop(model, model, start, with_pooled, QUICK), start)
    unpooled = plain_loop(model, model, start, lambda text: [[with_pooled(text)[0][0], with_pooled("")[0][1]]], QUICK)
    assert not close(latent["samples"], unpooled, start)
    # Its pooled text acts beside the phrases.
    forwards.clear()
    swap(replace(QUICK, outside="raw"), model=model)
    assert forwards == [4, 4]


def tiny_sdxl():
    import comfy.model_patcher
    import comfy.supported_models
    from inlay.host import demo_models as build

    class TinySDXL(comfy.supported_models.SDXL):
        unet_config = {}

        def model_type(self, *_):
            return comfy.model_base.ModelType.EPS

    config = {**build.UNET_CONFIG, "in_channels": 4, "adm_in_channels": 1280 + 6 * 256, "num_classes": "sequential"}
    supported = TinySDXL(config)
    supported.set_inference_dtype(torch.float32, None)
    model = supported.get_model({}, "", device=torch.device("cpu"))
    build.initialise(model.diffusion_model, 7)
    return comfy.model_patcher.ModelPatcher(model, load_device=torch.device("cpu"), offload_device=torch.device("cpu"))


def test_short_memory_splits_the_forward(swap, tiny, forwards, monkeypatch):
    whole = swap()[1]["samples"]
    monkeypatch.setattr(type(tiny.model), "get_free_memory", lambda self, device: 0)
    split = swap()[1]["samples"]
    assert forwards == [4, 4, 2, 2, 2, 2]
    assert (whole - split).abs().max() < 1e-4


def test_the_executors_inference_mode_changes_nothing(swap):
    with torch.inference_mode():
        inside = swap()[1]["samples"]
    assert torch.equal(inside.clone(), swap()[1]["samples"])


def test_pooled_outputs_and_lengths_are_stacked():
    one = [[torch.zeros(1, 77, 4), {"pooled_output": torch.zeros(1, 3)}]]
    two = [[torch.ones(1, 154, 4), {"pooled_output": torch.ones(1, 3)}]]
    ((context, extra),) = stack_texts([one, two], 2)
    assert context.shape == (4, 154, 4) and context[:, 0, 0].tolist() == [0, 0, 1, 1]
    assert extra["pooled_output"][:, 0].tolist() == [0, 0, 1, 1]


def test_cancel_keeps_the_picture_so_far(swap, picture, monkeypatch):
    kept, calls, real = [], [], swap_module.Forward.noises

    def press_cancel_at_the_third(self, *args):
        calls.append(1)
        if len(calls) == 3:
            comfy.model_management.interrupt_current_processing()
        return real(self, *args)

    monkeypatch.setattr(swap_module, "keep_pictures", lambda *args: kept.append(args))
    monkeypatch.setattr(swap_module.Forward, "noises", press_cancel_at_the_third)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        swap(replace(QUICK, iterations=20))
    ((images, _, done, total),) = kept
    # Some hosts look for it within the UNet too, before the third gradient is there.
    assert done in (2, 3) and total == 4
    moved = (images != picture).any(-1)[0]
    assert moved[12:45, 21:51].any() and not moved[:12].any()


def test_the_model_is_untouched(swap, sample, tiny):
    before = sample(tiny.model, steps=1)
    swap()
    assert torch.equal(sample(tiny.model, steps=1), before)


def test_bad_input_says_what_to_do(swap, tiny, mask, picture, monkeypatch):
    def fails(sentence, **arguments):
        with pytest.raises(ValueError, match=sentence):
            swap(**arguments)

    fails("mask is empty", mask=torch.zeros_like(mask))
    fails("covers no pixel", bbox={**BOX, "x": 90})
    fails("2 boxes for one picture where one is needed", bbox=[BOX, BOX])
    fails("no text encoder", clip=None)
    fails("not numbers", image=torch.full_like(picture, float("nan")))
    fails("no range", settings=replace(QUICK, t_min=900, t_max=100))
    fails("different families", target_model=tiny.inpaint_model)

    class Flow(CONST, torch.nn.Module):
        pass

    flow = tiny.model.clone()
    flow.add_object_patch("model_sampling", Flow())
    fails("flow", model=flow)

    broken = tiny.model.clone()
    broken.set_model_sampler_post_cfg_function(lambda args: args["denoised"] * float("nan"))
    fails("not numbers .update 1 of 10", model=broken)

    opaque = tiny.model.clone()
    opaque.set_model_unet_function_wrapper(
        lambda apply, args: apply(args["input"].detach(), args["timestep"], **args["c"])
    )
    fails("lets none through", model=opaque, settings=replace(QUICK, method="cds"))


def defaults(node):
    sockets = node.define_schema().inputs
    return {it.id: it.default for it in sockets if hasattr(it, "default") and not it.as_dict().get("forceInput")}


def test_the_nodes_pass_on_what_they_take(swap, tiny, encode, picture, mask, sample):
    from inlay.nodes.concept_region import ConceptRegion
    from inlay.nodes.swap import Swap

    given = defaults(Swap)
    settings = SwapSettings(**{name: given[name] for name in vars(SwapSettings()) if name in given})
    assert settings == SwapSettings() and set(vars(settings)) <= set(given)
    texts = {"source_prompt": TEXTS.source, "target_prompt": TEXTS.target}
    texts |= {"source_concept": TEXTS.source_concept, "target_concept": TEXTS.target_concept, "negative": ""}
    models = {"model": tiny.model, "clip": tiny.clip, "vae": tiny.vae, "image": picture, "mask": mask}
    result = Swap.execute(**{**given, **models, **texts, "iterations": 10, "seed": 3}).result
    want = swap()
    assert torch.equal(result[0], want[0]) and torch.equal(result[1]["samples"], want[1]["samples"])

    concept = encode("blue robot")
    (patched,) = ConceptRegion.execute(tiny.model, concept, mask, "raw").result
    (boxed,) = ConceptRegion.execute(tiny.model, concept, torch.ones(1, 64, 72), "raw", bbox=[[BOX]]).result
    wanted = concept_region(tiny.model, [concept[0][0]], [BOX], (64, 72), "raw")
    first, second, third = (sample(one, steps=1, size=(8, 9)) for one in (patched, boxed, wanted))
    assert torch.equal(first, second) and torch.equal(first, third)
    with pytest.raises(ValueError, match="holds 2 texts where one is needed"):
        ConceptRegion.execute(tiny.model, [*concept, *concept], mask, "ca")
