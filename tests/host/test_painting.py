"""The paint job on the tiny models, against the host's own sampling."""

from dataclasses import fields, replace

import comfy.sample
import comfy.samplers
import pytest
import torch
from inlay.guidance.start import STARTS, start_latent
from inlay.host.inpaint_channels import inpaint_channels
from inlay.host.inversion import invert_image
from inlay.host.painting import SCHEDULER_NAMES, PaintSettings, schedule
from inlay.nodes.paint import Paint

from nodes import InpaintModelConditioning

from .painting_scene import FEW, H, W, box, scene


@pytest.mark.parametrize(
    "background, paste", [("inverted", "feather"), ("renoised", "exact"), ("fixed", "exact"), ("none", "exact")]
)
def test_outside_the_mask_the_pictures_own_pixels(job, background, paste):
    images, latent = job(replace(FEW, background=background, paste=paste, candidates=2))
    outside = box()[0] == 0
    assert images.shape == (2, H, W, 3) and latent["samples"].shape == (2, 4, 8, 9)
    for image in images:
        assert torch.equal(image[outside], scene()[0][outside])
        assert (image - scene()[0])[~outside].abs().mean() > 0.02
    assert not torch.equal(*images)


def test_without_a_paste_the_decoder_has_the_background(job, tiny):
    images, latent = job(replace(FEW, paste="none"))
    assert torch.equal(images, tiny.vae.decode(latent["samples"]))


@pytest.mark.parametrize("size", [(67, 49), (33, 100)])
def test_every_size_and_aspect_comes_back(job, size):
    images, latent = job(image=scene(*size))
    assert images.shape == (1, *size, 3)
    assert latent["samples"].shape[-2:] == tuple(-(-n // 8) for n in size)
    outside = box(*size)[0] == 0
    assert torch.equal(images[0][outside], scene(*size)[0][outside])


@pytest.mark.parametrize(
    "background, sampler",
    [("inverted", "euler"), ("renoised", "euler"), ("fixed", "euler"), ("none", "euler"), ("inverted", "dpmpp_2m")],
)
def test_a_full_mask_is_the_hosts_plain_sampling(job, tiny, sample, background, sampler):
    settings = replace(FEW, background=background, sampler=sampler)
    _, latent = job(settings, mask=torch.ones(1, H, W))
    want = sample(tiny.model, steps=2, sampler=sampler, seed=7, size=(8, 9))
    assert torch.equal(latent["samples"], want) or (latent["samples"] - want).norm() < 1e-5 * want.norm()


def whole_cells(cells):
    """The mask of a picture that these latent cells fill."""
    return cells[:, 0].repeat_interleave(8, 1).repeat_interleave(8, 2)


def test_the_rim_keeps_its_share_of_the_background_below_the_level_where_things_are_decided(job, tiny):
    """A cell that the mask fills to a quarter: all of it is the model's at first, a quarter of it at the end."""
    mask = torch.zeros(1, H, W)
    mask[:, 16:40, 20:48] = 1
    mask[:, 16:40, 18:20] = 1  # columns 18 to 23 of the cells from 16 to 23
    cells = torch.nn.functional.max_pool2d(mask[:, None], 8)
    seen = []
    model = tiny.model.clone()
    model.set_model_unet_function_wrapper(
        lambda apply, call: (
            seen.append((float(call["timestep"][0]), call["input"][:1]))
            or apply(call["input"], call["timestep"], **call["c"])
        )
    )
    settings = replace(FEW, steps=4, sampler="euler", background="fixed", cfg=1.0)
    for levels, share in ((torch.tensor([5.0, 4.0]), 1.0), (torch.tensor([2.0, 1.0]), 0.75)):
        seen.clear()
        painted, whole = (
            job(settings, model, mask=one, sigmas=levels)[1]["samples"] for one in (mask, whole_cells(cells))
        )
        first, first_whole = (x for _, x in seen)
        latent = tiny.model.model.process_latent_in(tiny.vae.encode(scene()))
        noised = latent + levels[0] * comfy.sample.prepare_noise(latent, 7)
        rim = torch.zeros_like(cells, dtype=torch.bool).expand_as(latent).clone()
        rim[..., 2:5, 2] = True
        assert torch.allclose(first[rim], first_whole[rim].lerp(noised[rim], 1 - share), atol=1e-4)
        assert torch.allclose(painted, whole, atol=1e-4) == (share == 1)


def test_the_fixed_background_is_the_hosts_noise_mask(job, tiny, encode):
    settings = replace(FEW, background="fixed", sampler="euler", denoise=0.6)
    mask = torch.nn.functional.max_pool2d(box()[:, None], 8)
    _, ours = job(settings, mask=whole_cells(mask))
    latent = tiny.vae.encode(scene())
    want = comfy.sample.sample(
        tiny.model, comfy.sample.prepare_noise(latent, 7), 2, 5.0, "euler", "normal", encode("a red star on a beach"),
        encode(""), latent, denoise=0.6, noise_mask=mask, disable_pbar=True, seed=7,
    )  # fmt: skip
    assert (ours["samples"] - want).norm() < 1e-5 * want.norm()


def test_from_the_highest_level_with_the_picture_under_the_noise_it_still_is(job, tiny, encode):
    settings = replace(FEW, background="fixed", sampler="euler", start="picture")
    latent = tiny.vae.encode(scene())
    mask = torch.nn.functional.max_pool2d(box()[:, None], 8)
    want = comfy.sample.sample(
        tiny.model, comfy.sample.prepare_noise(latent, 7), 2, 5.0, "euler", "normal", encode("a red star on a beach"),
        encode(""), latent, noise_mask=mask, disable_pbar=True, seed=7,
    )  # fmt: skip
    ours = job(settings, mask=whole_cells(mask))[1]["samples"]
    assert (ours - want).norm() < 1e-5 * want.norm()


@pytest.mark.parametrize("scheduler", ["normal", "ddim_uniform"])
@pytest.mark.parametrize("start", STARTS)
def test_what_the_model_first_reads_in_the_mask(job, tiny, start, scheduler):
    """Also where a scheduler begins below the greatest level."""
    first = []
    model = tiny.model.clone()
    model.set_model_unet_function_wrapper(
        lambda apply, call: first.append(call["input"]) or apply(call["input"], call["timestep"], **call["c"])
    )
    settings = replace(FEW, background="fixed", start=start, scheduler=scheduler)
    job(settings, model=model)
    clean = tiny.model.model.process_latent_in(tiny.vae.encode(scene()))
    cells = torch.nn.functional.max_pool2d(box()[:, None], 8)
    under = start_latent(start, clean, cells)
    # The host makes the whole variance noise where sampling begins at the highest level.
    highest, sigma = tiny.model.get_model_object("model_sampling").sigma_max, schedule(tiny.model, settings)[0]
    assert (sigma < 0.99 * highest) == (scheduler == "ddim_uniform")
    scale = sigma if scheduler == "ddim_uniform" else (1 + highest**2).sqrt()
    want = comfy.sample.prepare_noise(clean, 7) * scale + under
    inside = torch.nn.functional.avg_pool2d(box()[:, None], 8).expand_as(want) == 1
    assert inside.any() and torch.allclose(first[0][:1][inside], want[inside], atol=1e-4)


@pytest.mark.parametrize("background", ["inverted", "renoised", "fixed"])
def test_outside_the_latent_ends_as_the_pictures_own(job, tiny, background):
    _, latent = job(replace(FEW, background=background))
    kept = torch.nn.functional.max_pool2d(box()[:, None], 8)[0, 0] == 0
    difference = (latent["samples"] - tiny.vae.encode(scene()))[0][:, kept]
    assert difference.abs().max() < 1e-5


def test_a_given_trajectory_is_what_it_would_have_inverted(job, tiny, encode):
    trajectory, _ = invert_image(tiny.model, tiny.vae, scene(), positive=encode(""), steps=2)
    given = job(trajectory=trajectory)[1]["samples"]
    assert torch.equal(given, job()[1]["samples"])


@pytest.mark.parametrize("scheduler", SCHEDULER_NAMES)
def test_one_trajectory_serves_every_scheduler_step_count_and_denoise(job, tiny, encode, scheduler):
    trajectory, _ = invert_image(tiny.model, tiny.vae, scene(), positive=encode(""), steps=3)
    settings = replace(FEW, scheduler=scheduler, steps=5, denoise=0.7)
    _, latent = job(settings, trajectory=trajectory)
    kept = torch.nn.functional.max_pool2d(box()[:, None], 8)[0, 0] == 0
    difference = (latent["samples"] - tiny.vae.encode(scene()))[0]
    assert difference[:, kept].abs().max() < 1e-5
    assert difference[:, ~kept].abs().mean() > 0.05


@pytest.mark.parametrize("background", ["inverted", "fixed"])
def test_an_inpainting_model_never_sees_what_it_replaces(job, tiny, background):
    image = scene()
    other = torch.where(box()[..., None] > 0, scene(seed=1), image)
    settings = replace(FEW, background=background)
    images, latent = job(settings, model=tiny.inpaint_model, image=image)
    again, other_latent = job(settings, model=tiny.inpaint_model, image=other)
    assert torch.equal(images, again) and torch.equal(latent["samples"], other_latent["samples"])
    elsewhere = torch.where(box()[..., None] > 0, image, scene(seed=1))
    assert not torch.equal(job(settings, model=tiny.inpaint_model, image=elsewhere)[1]["samples"], latent["samples"])


def test_an_inpainting_models_channels_are_the_hosts(tiny, encode):
    mask = torch.zeros(1, H, W)
    mask[:, 16:32, 24:48] = 1
    positive, _, _ = InpaintModelConditioning().encode(encode("a star"), encode(""), scene(), tiny.vae, mask)
    channels = inpaint_channels(tiny.vae, scene(), mask)
    seen = []
    for values in (positive[0][1], channels):
        noise = torch.zeros(1, 4, 8, 9)
        model = tiny.inpaint_model.model
        seen.append(model.concat_cond(noise=noise, device="cpu", **values))
    assert seen[0].shape == (1, 5, 8, 9)
    assert torch.allclose(*seen, atol=1e-6)


def test_a_guider_and_sigmas_of_the_users_own(job, tiny, encode, sample):
    guider = comfy.samplers.CFGGuider(tiny.model)
    guider.set_conds(encode("a blue cross"), encode("a beach"))
    guider.set_cfg(3.0)
    sigmas = torch.tensor([9.0, 2.0, 0.5, 0.0])
    before = {name: [dict(cond) for cond in conds] for name, conds in guider.original_conds.items()}
    settings = replace(FEW, sampler="euler", background="none")
    _, ours = job(settings, guider=guider, sigmas=sigmas)
    latent = tiny.vae.encode(scene())
    want = guider.sample(
        comfy.sample.prepare_noise(latent, 7), latent, comfy.samplers.sampler_object("euler"), sigmas, seed=7
    )
    assert (ours["samples"] - want).norm() < 1e-5 * want.norm()
    assert {name: [set(cond) for cond in conds] for name, conds in before.items()} == {
        name: [set(cond) for cond in conds] for name, conds in guider.original_conds.items()
    }


def test_a_guider_on_an_inpainting_model_gets_its_channels(job, tiny, encode):
    guider = comfy.samplers.CFGGuider(tiny.inpaint_model)
    guider.set_conds(encode("a red star on a beach"), encode(""))
    guider.set_cfg(5.0)
    want = job(model=tiny.inpaint_model)[1]["samples"]
    assert torch.equal(job(model=tiny.inpaint_model, guider=guider)[1]["samples"], want)


def test_soft_masks_mix(job):
    soft = box() * 0.5
    images, _ = job(mask=soft)
    hard, _ = job()
    inside = box()[0] > 0
    change = (images - scene())[0][inside].abs().mean()
    assert 0 < change < (hard - scene())[0][inside].abs().mean()


def test_bad_input_is_one_clear_sentence(job, tiny):
    with pytest.raises(ValueError, match="mask is empty"):
        job(mask=torch.zeros(1, H, W))
    with pytest.raises(ValueError, match="same aspect"):
        job(mask=torch.ones(1, 64, 32))
    with pytest.raises(ValueError, match="too small for this VAE"):
        job(image=scene(6, 40))
    with pytest.raises(ValueError, match="no VAE"):
        job(vae=None)
    with pytest.raises(ValueError, match="do not go together"):
        job(image=scene(batch=3), mask=torch.ones(2, H, W))
    with pytest.raises(ValueError, match="Repeats need"):
        job(replace(FEW, sampler="lms", repeats=2))
    with pytest.raises(ValueError, match="no step"):
        job(sigmas=torch.tensor([1.0]))
    with pytest.raises(ValueError, match="trajectory belongs to a picture of 128 x 64"):
        trajectory, _ = invert_image(tiny.model, tiny.vae, scene(64, 128), steps=2)
        job(trajectory=trajectory)
    # The same latent's size, and another picture all the same.
    with pytest.raises(ValueError, match="trajectory belongs to a picture of 70 x 61 pixels, and this one is 72 x 64"):
        trajectory, _ = invert_image(tiny.model, tiny.vae, scene(61, 70), steps=2)
        job(trajectory=trajectory)
    with pytest.raises(ValueError, match="predicts v, and this one predicts eps"):
        trajectory, _ = invert_image(tiny.v_model, tiny.vae, scene(), steps=2)
        job(trajectory=trajectory)
    with pytest.raises(ValueError, match="not numbers"):
        job(mask=torch.full((1, H, W), torch.nan))
    with pytest.raises(ValueError, match="another model"):
        trajectory, _ = invert_image(tiny.inpaint_model, tiny.vae, scene(), steps=2)
        job(trajectory=trajectory)
    elsewhere = comfy.samplers.CFGGuider(tiny.inpaint_model)
    with pytest.raises(ValueError, match="The guider paints with another model"):
        job(guider=elsewhere)
    broken = tiny.model.clone()
    broken.set_model_sampler_post_cfg_function(lambda args: args["denoised"] * torch.nan)
    with pytest.raises(ValueError, match="Sampling ended in values that are not numbers"):
        job(replace(FEW, background="none"), model=broken)


def test_the_node_hands_over_every_setting(tiny, encode, job):
    schema = Paint.define_schema()
    names = [field.name for field in fields(PaintSettings)]
    widgets = {socket.id: socket.default for socket in schema.inputs if hasattr(socket, "default")}
    defaults = {name: widgets[name] for name in names}
    assert PaintSettings(**defaults) == PaintSettings()
    few = {**defaults, "steps": 2, "inversion_steps": 2, "seed": 7, "paste": "exact"}
    images, latent = Paint.execute(
        tiny.model, encode("a red star on a beach"), encode(""), tiny.vae, scene(), box(), **few
    ).result
    assert torch.equal(images, job()[0]) and latent["samples"].shape == (1, 4, 8, 9)


def test_the_source_model_is_untouched(job, tiny, sample):
    before = sample(tiny.model)
    job()
    assert torch.equal(sample(tiny.model), before)
