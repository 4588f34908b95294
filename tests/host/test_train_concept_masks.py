"""Whose saliency a concept is learned with, and at what size its pictures and masks are looked at."""

from dataclasses import asdict

import pytest
import torch
from inlay.demo.training.pictures import SEEDS, training_set
from inlay.host import concept_masks
from inlay.host.concept_loop import ConceptLoop
from inlay.host.concept_masks import MASK_SOURCES, with_source
from inlay.host.demo_world import load_demo_models
from inlay.host.inversion import empty_conditioning
from inlay.host.pictures import encode_picture
from inlay.nodes.train_concept import TrainConcept
from inlay.training.concept import ConceptSettings

from .train_concept_setup import IMAGES, PAIR, fixture_folder, fixture_learn, fixture_short_samples, saved  # noqa: F401

BORDER = "attention to the border"
LARGE = torch.rand(1, 72, 88, 3, generator=torch.Generator().manual_seed(1))


def same(one, other):
    return torch.equal(saved(one)["clip_l"], saved(other)["clip_l"]) and torch.equal(one.mask, other.mask)


def test_auto_without_masks_is_attention_to_the_border_as_the_workflows_have_it(learn, monkeypatch):
    auto = learn()
    monkeypatch.setattr(concept_masks, "auto_threshold", lambda maps: torch.full((len(maps),), 1.25))
    assert same(learn(), learn(mask_source=BORDER, layer="16x16 decoder", threshold=1.25))
    monkeypatch.setattr(concept_masks, "auto_threshold", lambda maps: torch.full((len(maps),), 0.5))
    assert same(learn(), learn(mask_source=BORDER, layer="16x16 decoder", threshold=0.5))
    assert not same(auto, learn(mask_source="self-attention"))
    assert same(learn(threshold=0.75), learn(mask_source=BORDER, threshold=0.75))


@pytest.mark.parametrize("source", ["self-attention", "calibrated self-attention", BORDER])
def test_a_source_that_is_chosen_has_the_threshold_1_unless_told_otherwise(source):
    for given, wanted in ((0.0, 1.0), (1.0, 1.0), (0.4, 0.4)):
        settings = ConceptSettings(mask_source=source, threshold=given)
        told = asdict(with_source(settings, None))
        assert told == {**asdict(settings), "threshold": wanted}


@pytest.mark.parametrize("source", [source for source in MASK_SOURCES if source != "masks"])
def test_masks_are_used_whatever_source_is_named(learn, source):
    masks = torch.zeros(1, *IMAGES.shape[1:3])
    masks[:, 8:24, 8:24] = 1
    told = learn(masks=masks, mask_source="masks")
    assert same(learn(masks=masks, mask_source=source), told)
    assert not torch.equal(told.mask, learn(mask_source=source).mask)
    with pytest.raises(ValueError, match="^The mask excludes everything"):
        learn(masks=torch.zeros_like(masks), mask_source=source)


def test_auto_says_which_picture_seems_to_have_no_salient_part(learn, monkeypatch, caplog):
    seen = iter([0.5, 0.7])
    monkeypatch.setattr(concept_masks, "evenness", lambda maps: torch.tensor([next(seen)]))
    learn(images=PAIR)
    warned = [line for line in caplog.messages if "no salient part" in line]
    assert warned == ["Picture 2 of 2 seems to have no salient part. Look at the output mask, or connect masks."]


def test_the_demo_model_tells_empty_scenes_from_those_with_a_thing(caplog):
    models = load_demo_models("text")
    seeds = [SEEDS["tuning"] + number for number in range(4)]
    settings = with_source(ConceptSettings(), None)
    for empty, warnings in ((0.0, 0), (1.0, 4)):
        pictures = training_set(seeds, subject_share=0.0, empty_share=empty).pictures.image
        latents = encode_picture(models.vae, pictures)
        caplog.clear()
        concept_masks.legible_layers(
            models.model, empty_conditioning(models.model), latents, settings, settings.mask_source
        )
        assert sum("no salient part" in line for line in caplog.messages) == warnings


def test_the_nodes_defaults_are_the_settings_own():
    defaults = {socket.id: socket.default for socket in TrainConcept.define_schema().inputs if socket.id in SETTINGS}
    assert defaults == SETTINGS
    # Saved graphs hold the widgets' values in their order.
    assert TrainConcept.define_schema().inputs[-1].id == "map_average"


SETTINGS = asdict(ConceptSettings())


def test_a_running_average_of_the_maps_changes_the_mask_and_not_what_goes_at_once(learn):
    settings = {"images": PAIR, "steps": 3, "accumulation": 4, "mask_source": "self-attention"}
    averaged, single, plain = (
        learn(map_average=kept, at_once=n, **settings) for kept, n in ((0.9, 4), (0.9, 1), (0, 4))
    )
    assert averaged.losses == pytest.approx(single.losses, rel=1e-3)
    assert torch.allclose(saved(averaged)["clip_l"], saved(single)["clip_l"], atol=1e-5)
    assert (averaged.mask != single.mask).float().mean() < 0.02 < (averaged.mask != plain.mask).float().mean()


@pytest.fixture(name="seen")
def fixture_seen(monkeypatch):
    """The loops that ran."""
    loops, plain = [], ConceptLoop.run
    monkeypatch.setattr(ConceptLoop, "run", lambda loop, *args: loops.append(loop) or plain(loop, *args))
    return loops


@pytest.mark.parametrize("objective", ["saliency focus", "pixel"])
def test_larger_pictures_and_their_masks_are_scaled_down(learn, seen, objective):
    masks = torch.zeros(1, 72, 88)
    masks[:, 32:64, 32:80] = 1
    learned = learn(images=LARGE, masks=masks, resolution=44, objective=objective)
    (loop,) = seen
    assert loop.material.images.shape == (1, 36, 44, 3) and loop.material.latents.shape[-2:] == (5, 6)
    assert learned.mask.shape == (1, 72, 88) and learned.preview.shape == (1, 36, 3 * 44, 3)
    if objective == "pixel":
        assert loop.material.pixels.shape[-2:] == (40, 48)
    else:
        assert loop.material.masks.shape[-2:] == (5, 6)
        assert learned.mask[:, 40:56, 40:72].min() > 0.9 and learned.mask[:, :16].max() < 0.1


def test_pictures_that_are_small_enough_are_learned_from_as_they_are(learn, seen):
    assert same(learn(), learn(resolution=0))
    learn(images=LARGE, resolution=0)
    assert torch.equal(seen[0].material.images, IMAGES) and torch.equal(seen[-1].material.images, LARGE)


def test_a_checkpoint_of_another_resolution_is_not_resumed(learn, monkeypatch, caplog):
    plain, left = ConceptLoop._step, [1]

    def fail(loop):
        if loop.training.done == 1 and left:
            left.clear()
            raise RuntimeError("The host failed.")
        return plain(loop)

    monkeypatch.setattr(ConceptLoop, "_step", fail)
    with pytest.raises(RuntimeError):
        learn("half", images=LARGE, resolution=44)
    with caplog.at_level("INFO"):
        learn("half", images=LARGE, resolution=64)
    assert "of other settings, pictures or models. Starting anew" in caplog.text
