"""What the swap promises: nothing moves outside the box, models as before, cancel, memory, nodes and bad input."""

from dataclasses import replace

import comfy.model_management
import pytest
import torch
from comfy.model_sampling import CONST, V_PREDICTION, ModelSamplingContinuousV
from inlay.host import kept_work, swap_run
from inlay.host import swap as swap_module
from inlay.host.concept_region_patch import concept_region
from inlay.host.swap import SwapSettings

from .swap_setup import BOX, QUICK, TEXTS, fixture_forwards, fixture_mask, fixture_picture, fixture_swap, latent_of  # noqa: F401


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


@pytest.mark.parametrize(("method", "rows"), [("instantswap", [8, 8]), ("cds", [8, 4, 8, 4])])
def test_a_batch_of_pictures_is_its_pictures(swap, picture, mask, forwards, method, rows):
    """Row 0 alone and in a batch, each with its own box; the branches of both pictures share one forward."""
    masks = torch.cat([mask, mask.roll(8, 2)])
    settings = replace(QUICK, method=method)
    both = swap(settings, image=torch.cat([picture, picture.flip(2)]), mask=masks)[1]["samples"]
    assert forwards == rows
    alone = swap(settings)[1]["samples"]
    assert (both[:1] - alone).abs().max() < 1e-4 * alone.abs().max().clamp_min(1)


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


def test_a_box_thinner_than_a_cell_moves_the_cells_that_it_touches(tiny, swap, picture):
    _, latent = swap(bbox={"x": 17, "y": 24, "width": 1, "height": 16})
    moved = (latent["samples"] != latent_of(tiny, picture)).any(1)[0]
    assert moved.nonzero().tolist() == [[3, 2], [4, 2]]


def test_the_target_has_its_own_text_encoder(swap, tiny):
    """One that reads the source's sentence in the target's words, and the plain one told those words."""

    class Renaming:
        def tokenize(self, text, **options):
            return tiny.clip.tokenize(text.replace("star", "robot").replace("red", "blue"), **options)

        def __getattr__(self, name):
            return getattr(tiny.clip, name)

    same = replace(TEXTS, target=TEXTS.source, target_concept=TEXTS.source_concept)
    theirs = swap(texts=same, target_clip=Renaming())[1]["samples"]
    assert torch.equal(theirs, swap()[1]["samples"])
    assert not torch.equal(theirs, swap(texts=same)[1]["samples"])
    other = tiny.model.clone()
    apart = swap(texts=same, target_model=other, target_clip=Renaming())[1]["samples"]
    assert torch.equal(apart, swap(target_model=other)[1]["samples"])


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


def test_cancel_keeps_the_picture_so_far(swap, picture, monkeypatch):
    kept, calls, real = [], [], swap_run.Forward.noises

    def press_cancel_at_the_third(self, *args):
        calls.append(1)
        if len(calls) == 3:
            comfy.model_management.interrupt_current_processing()
        return real(self, *args)

    monkeypatch.setattr(swap_module, "keep_pictures", lambda *args: kept.append(args))
    monkeypatch.setattr(swap_run.Forward, "noises", press_cancel_at_the_third)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        swap(replace(QUICK, iterations=20))
    ((images, _, done, total),) = kept
    # Some hosts look for it within the UNet too, before the third gradient is there.
    assert done in (2, 3) and total == 4
    moved = (images != picture).any(-1)[0]
    assert moved[12:45, 21:51].any() and not moved[:12].any()


def test_a_failure_keeps_what_was_reached(swap, picture, monkeypatch):
    kept, calls, noises = [], [], swap_run.Forward.noises

    def breaks_down(self, *args):
        calls.append(args)
        if len(calls) == 2:
            raise RuntimeError("the card is gone")
        return noises(self, *args)

    reached = swap(replace(QUICK, iterations=5))[0]
    monkeypatch.setattr(swap_run.Forward, "noises", breaks_down)
    monkeypatch.setattr(kept_work, "keep_pictures", lambda *args: kept.append(args))
    with pytest.raises(RuntimeError, match="the card is gone"):
        swap()
    images, name, done, total, why = kept[0]
    assert (name, done, total, why) == ("inlay_failed", 1, 2, "The run failed")
    assert images.shape == reached.shape and not torch.equal(images, picture)


def test_a_picture_that_cannot_be_decoded_does_not_take_the_others_along(swap, picture, monkeypatch):
    kept, decode = [], swap_module.decode_picture
    pictures = torch.cat([picture, 1 - picture])
    image, latent = swap(image=pictures)

    def overflows(vae, samples, *size):
        if not torch.equal(samples, latent["samples"][:1]):
            raise ValueError("The VAE decoded the result to values that are not numbers.")
        return decode(vae, samples, *size)

    monkeypatch.setattr(swap_module, "decode_picture", overflows)
    monkeypatch.setattr(kept_work, "keep_pictures", lambda *args: kept.append(args))
    with pytest.raises(ValueError, match="not numbers"):
        swap(image=pictures)
    torch.testing.assert_close(kept[0][0], image[:1], atol=1e-4, rtol=0)


def test_a_vae_of_another_family_is_refused(swap, tiny, monkeypatch):
    monkeypatch.setattr(tiny.vae, "latent_channels", 16)
    with pytest.raises(ValueError, match="This VAE has 16 latent channels and the model 4"):
        swap()


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
    fails("1 x 2 pixels, smaller than a latent pixel, 8 x 8", bbox={"x": 17, "y": 25, "width": 1, "height": 2})
    fails("no learned concept embedding:nope", texts=replace(TEXTS, target_concept="embedding:nope"))
    fails("2 boxes for one picture where one is needed", bbox=[BOX, BOX])
    fails("no box for picture 1 of 1", bbox=[])
    fails("no text encoder", clip=None)
    fails("not numbers", image=torch.full_like(picture, float("nan")))
    fails("no range", settings=replace(QUICK, t_min=900, t_max=100))
    fails("different families .4 input channels and 9 input channels", target_model=tiny.inpaint_model)

    continuous = tiny.v_model.clone()
    continuous.add_object_patch("model_sampling", type("Continuous", (ModelSamplingContinuousV, V_PREDICTION), {})())
    fails("continuous noise schedule", model=continuous)

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
