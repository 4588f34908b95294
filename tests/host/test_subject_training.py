"""Training a subject on a tiny inpainting model: what is learned, resumed, repeated, refused."""

import json
import re

import folder_paths
import pytest
import torch
from inlay.guidance.reference import ReferenceEncoder
from inlay.host import subject_loop
from inlay.host.fingerprints import patches_id
from inlay.host.lora_files import DOWN, PATCHES, UP, read_lora
from inlay.host.recompute import bytes_kept
from inlay.host.subject_loading import load_subject
from inlay.host.subject_telling import Teller
from inlay.host.subject_training import Photos
from torch import nn

from .subject_setup import BOXES, make_setup, train


@pytest.fixture(scope="module")
def setup(tiny):
    return make_setup(tiny)


def test_photos_of_any_size_become_a_file_that_changes_the_model_and_leaves_no_trace(tiny, setup, sample, caplog):
    told = {"positive": [[torch.randn(1, 1, 128, generator=torch.Generator().manual_seed(1)), {}]]}
    plain = sample(tiny.inpaint_model, **told)
    with torch.inference_mode(), caplog.at_level("INFO", "inlay"):
        trained = train(tiny, setup, "thing")
    assert torch.equal(sample(tiny.inpaint_model, **told), plain)
    assert "parameters" in caplog.text and "minutes" in caplog.text
    assert len(trained.losses) == 3 and all(0 < loss < 100 for loss in trained.losses)
    assert trained.preview.shape[1:] == (64, 192, 3) and 2 <= len(trained.preview) <= 4
    lora = read_lora("thing.safetensors")
    assert {key: value.shape for key, value in lora.items()} == {
        key: value.shape for key, value in trained.lora.items()
    }
    assert lora.metadata["ss_network_dim"] == "2" and json.loads(lora.metadata["inlay.recipe"])["batch"] == 2
    names = {key.rpartition("_attn")[2].partition(".")[0] for key in lora}
    assert names == {"1_to_q", "1_to_k", "1_to_v", "1_to_out_0", "2_to_v", "2_to_out_0"}
    assert all(value.any() for key, value in lora.items())
    changed = sample(load_subject(tiny.inpaint_model, lora, 1.0), **told)
    assert changed.isfinite().all() and not torch.equal(changed, plain)
    assert not any(weight.requires_grad for weight in tiny.inpaint_model.model.parameters())


def test_the_same_seed_gives_the_same_file_and_another_seed_another(tiny, setup):
    first, again = (open(train(tiny, setup, "same", dropout=0.2).path, "rb").read() for _ in range(2))
    assert first == again
    assert open(train(tiny, setup, "same", dropout=0.2, seed=1).path, "rb").read() != first


def test_the_loss_falls_where_it_is_trained(tiny, setup):
    many = {"steps": 40, "views": 1, "condition_dropout": 0.0, "learning_rate": 1e-2, "rank": 8}
    losses = train(tiny, setup, "falls", mask_augmentation="none", reference_augmentation=False, **many).losses
    assert sum(losses[-10:]) < 0.97 * sum(losses[:10])


def test_recomputed_blocks_keep_less_and_it_is_said(tiny, setup, monkeypatch, caplog):
    kept, real = [], subject_loop.bytes_kept

    def count(*args):
        kept.append(real(*args))
        return 10**9

    monkeypatch.setattr(subject_loop, "bytes_kept", count)
    for name, checkpointing in (("keeps", False), ("recomputes", True)):
        with caplog.at_level("INFO", "inlay"):
            train(tiny, setup, name, batch=3, steps=1, checkpointing=checkpointing)
    assert kept[0] > 2 * kept[1]
    # A row keeps a gigabyte.
    assert all(3 < float(said) < 3.5 for said in re.findall(r"about ([\d.]+) GB", caplog.text))


def test_what_a_forward_keeps_for_backward_is_counted():
    layer = nn.Linear(8, 16).requires_grad_(False)
    x = torch.rand(4, 8, requires_grad=True)
    # relu keeps its result, the product both its factors; the layer's own weight stays whatever is trained.
    assert bytes_kept(lambda: layer(x).relu(), layer) == 4 * 16 * 4
    assert bytes_kept(lambda: (x * x).sum(), layer) == 4 * 8 * 4
    with torch.no_grad():
        assert bytes_kept(lambda: layer(x).relu(), layer) == 0


def test_accumulation_and_checkpointing_only_change_the_way(tiny, setup):
    plain = train(tiny, setup, "plain", batch=1, accumulation=2).lora
    saved = train(tiny, setup, "saved", batch=1, accumulation=2, checkpointing=True).lora
    for key, value in plain.items():
        assert torch.allclose(saved[key], value, atol=1e-6), key


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_fp32_weights(tiny, setup, precision):
    half = train(tiny, setup, "half", precision=precision)
    full = train(tiny, setup, "full")
    assert all(value.dtype == torch.float32 for value in half.lora.values())
    # Every step was in half precision, and what was learned is the same up to its rounding.
    assert all(
        one != other and abs(one / other - 1) < 0.01 for one, other in zip(half.losses, full.losses, strict=True)
    )
    for part, most in ((UP, 0.25), (DOWN, 0.02)):
        learned, wanted = (
            torch.cat([value.flatten() for key, value in lora.items() if key.endswith(part)])
            for lora in (half.lora, full.lora)
        )
        assert 0 < (learned - wanted).norm() < most * wanted.norm()


def test_bad_input_is_refused_before_the_first_step(tiny, setup):
    images, masks = setup.photos.images, setup.photos.masks
    refused = [
        ({"model": tiny.model}, "9 channels in, and this one has 4"),
        ({"rank": 65}, "Rank 65 is larger than the layer .* 64 x 64. Choose at most 64"),
        ({"photos": Photos(images)}, "where the subject is"),
        ({"photos": Photos([])}, "no photo"),
        ({"photos": Photos(images * 2, masks[:1] * 3)}, "3 masks for 4 photos"),
        ({"photos": Photos(images, [masks[0], masks[1] * 0])}, "Mask 2 of 2 shows no subject"),
        ({"photos": Photos(images, boxes=[BOXES[0]] * 3)}, "boxes for 3 images"),
        ({"photos": Photos(images, boxes=[[BOXES[0], []]])}, "no box for photo 2 of 2"),
        ({"teller": Teller()}, "both clip_vision and reference_encoder"),
        ({"learning_rate": 0.0}, "learning rate is 0"),
    ]
    narrow = ReferenceEncoder(nn.Linear(768, 768), torch.zeros(1, 1, 768), 768)
    refused.append(({"teller": Teller(narrow, tiny.clip_vision)}, "takes 768"))
    wide = ReferenceEncoder(nn.Linear(128, 768), torch.zeros(1, 1, 768), 128).requires_grad_(False)
    refused.append(
        ({"teller": Teller(wide, tiny.clip_vision)}, "768 wide and the model takes 128. Connect the reference encoder")
    )
    for changes, words in refused:
        with pytest.raises(ValueError, match=words):
            train(tiny, setup, "never", **changes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny.vae, "latent_channels", 16)
        with pytest.raises(ValueError, match="This VAE has 16 latent channels and the model 4. Connect the VAE"):
            train(tiny, setup, "never")
    assert folder_paths.get_full_path("loras", "never.safetensors") is None


def test_one_photo_is_trained_and_said_to_be_few(tiny, setup, monkeypatch):
    said = []
    monkeypatch.setattr(subject_loop, "show_sentence", said.append)
    trained = train(tiny, setup, "one", photos=Photos(setup.photos.images[:1], boxes=[BOXES[0]]), steps=1)
    assert "minutes. There is one photo only" in said[0] and len(trained.losses) == 1
    train(tiny, setup, "two", steps=1)
    assert said[1].endswith("minutes.")


def test_a_file_says_which_loras_were_on_its_base(tiny, setup):
    plain = train(tiny, setup, "domain", rank=1, steps=1).lora
    assert PATCHES not in plain.metadata
    domain = load_subject(tiny.inpaint_model, plain, 1.0)
    train(tiny, setup, "on-domain", model=domain, rank=1, steps=1)
    assert read_lora("on-domain.safetensors").metadata[PATCHES] == patches_id(domain)
