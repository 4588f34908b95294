"""A reference projection trained with the subject: kept in its file, read by both nodes that take one."""

import comfy.utils
import pytest
import torch
from inlay.attention.boxes import box_mask
from inlay.guidance.reference import ReferenceEncoder
from inlay.guidance.reference_mapper import ReferenceMapper
from inlay.host.full_tuning import tune_whole
from inlay.host.lora_files import read_lora
from inlay.host.reference_conditioning import reference_conditioning
from inlay.host.reference_files import build_encoder, find_file
from inlay.host.subject_loading import load_subject, subject_conditioning
from inlay.host.subject_projection import PREFIX, load_projection, projection_tensors
from inlay.host.subject_telling import Teller
from inlay.host.subject_training import Photos, train_subject
from inlay.training.subject_settings import SubjectSettings

import nodes

SMALL = {"preset": "custom", "rank": 2, "steps": 2, "batch": 2, "resolution": 64, "views": 2, "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def photos():
    torch.manual_seed(0)
    images = [torch.rand(1, 128, 144, 3), torch.rand(1, 100, 90, 3)]
    box = [{"x": 20, "y": 30, "width": 50, "height": 40}]
    return Photos(images, [box_mask(box, *image.shape[1:3])[None] for image in images])


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(1)
    projection = torch.nn.Sequential(torch.nn.LayerNorm(128), torch.nn.Linear(128, 128))
    return ReferenceEncoder(projection, torch.randn(1, 1, 128), 128).eval().requires_grad_(False)


def train(tiny, photos, encoder, name, **changes):
    settings = SubjectSettings(**{**SMALL, "projection": "trained", **changes})
    teller = Teller(encoder, tiny.clip_vision)
    return train_subject(tiny.inpaint_model, tiny.vae, photos, name, settings, teller, "overwrite")


def test_it_is_trained_saved_and_used_in_the_encoders_place(tiny, photos, encoder, sample):
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    with torch.inference_mode():
        trained = train(tiny, photos, encoder, "projected", steps=6, condition_dropout=0.5)
    assert all(torch.equal(encoder.state_dict()[key], value) for key, value in before.items())
    lora = read_lora("projected.safetensors")
    own = load_projection(lora)
    # Every part of it has learned, the token of no reference too.
    assert all(not torch.equal(value, before[key]) for key, value in own.state_dict().items())
    reference = photos.images[0]
    positive, negative = subject_conditioning(tiny.inpaint_model, lora, None, tiny.clip_vision, reference, None)
    wanted = reference_conditioning(own, tiny.clip_vision, reference)
    assert torch.equal(positive[0][0], wanted[0][0][0]) and torch.equal(negative[0][0], wanted[1][0][0])
    assert not torch.equal(positive[0][0], reference_conditioning(encoder, tiny.clip_vision, reference)[0][0][0])
    told = {"positive": positive, "negative": negative}
    ours = sample(load_subject(tiny.inpaint_model, lora, 1.0), **told)
    stock = nodes.LoraLoader().load_lora(tiny.inpaint_model, tiny.clip, "projected.safetensors", 1.0, 0.0)[0]
    assert torch.equal(ours, sample(stock, **told))
    read = build_encoder(comfy.utils.load_torch_file(find_file("loras/projected.safetensors")))
    assert all(torch.equal(read.state_dict()[key], trained.lora[PREFIX + key]) for key in before)


def test_without_an_encoder_a_new_one_learns(tiny, photos):
    trained = train(tiny, photos, None, "fresh", steps=3)
    own = load_projection(trained.lora)
    assert own.width == 128 and own.null.shape == (1, 1, 128) and own.null.any()
    again = train(tiny, photos, None, "fresh", steps=3)
    assert open(again.path, "rb").read() == open(trained.path, "rb").read()


def test_a_mapper_comes_back_from_its_tensors():
    torch.manual_seed(2)
    encoder = ReferenceEncoder(ReferenceMapper(2, 16, 24), torch.randn(1, 1, 24), 16).requires_grad_(False)
    again = load_projection(projection_tensors(encoder))
    pooled = torch.randn(3, 16)
    assert torch.equal(encoder(pooled), again(pooled))
    with pytest.raises(ValueError, match="unknown kind"):
        load_projection({f"{PREFIX}null": torch.zeros(1, 1, 4)})


def test_full_fine_tuning_moves_every_weight_of_a_clone_alone(tiny, photos, encoder, sample):
    told = {"positive": [[torch.randn(1, 1, 128, generator=torch.Generator().manual_seed(1)), {}]]}
    plain = sample(tiny.inpaint_model, **told)
    recipe = SubjectSettings(**{**SMALL, "learning_rate": 1e-3, "resume": False})
    with torch.inference_mode():
        tuned, weights = tune_whole(tiny.inpaint_model, tiny.vae, photos, recipe, Teller(encoder, tiny.clip_vision))
    state = tiny.inpaint_model.model.state_dict()
    # With one context token the queries and keys of cross-attention get no gradient.
    moved = [key for key, value in weights.items() if not torch.allclose(value, state[key], atol=2e-4)]
    assert len(moved) > 0.8 * len(weights)
    assert not any(key.endswith(("attn2.to_q.weight", "attn2.to_k.weight")) for key in moved)
    assert not torch.allclose(sample(tuned, **told), plain, atol=1e-3)
    assert torch.equal(sample(tiny.inpaint_model, **told), plain)
