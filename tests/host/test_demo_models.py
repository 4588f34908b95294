"""The host's own nodes work with the demo world's models, whatever their weights."""

import torch
from inlay.host.demo_models import VOCABULARY, expand_vocabulary


def test_the_model_samples(tiny, sample):
    plain = sample(tiny.model)
    assert plain.shape == (1, 4, 16, 18) and plain.isfinite().all()
    assert not torch.equal(plain, sample(tiny.model, seed=1))


def test_the_v_model_is_one(tiny, sample):
    import comfy.model_sampling

    assert isinstance(tiny.v_model.get_model_object("model_sampling"), comfy.model_sampling.V_PREDICTION)
    assert sample(tiny.v_model).isfinite().all()


def test_the_autoencoder_takes_and_gives_128_pixels(tiny):
    with torch.no_grad():
        latent = tiny.vae.encode(torch.rand(1, 128, 144, 3))
        picture = tiny.vae.decode(latent)
    assert latent.shape == (1, 4, 16, 18) and picture.shape == (1, 128, 144, 3)


def test_text_and_vision_share_a_space(tiny, encode):
    conditioning, extra = encode("a star")[0]
    assert conditioning.shape == (1, 77, 128) and extra["pooled_output"].shape == (1, 128)
    with torch.no_grad():
        assert tiny.clip_vision.encode_image(torch.rand(2, 64, 64, 3)).image_embeds.shape == (2, 128)


def test_vocabulary_keeps_its_rows_and_fills_the_rest():
    rows, ids = torch.randn(40, 128) * 3 + 1, torch.randperm(VOCABULARY)[:40]
    table = expand_vocabulary(rows, ids)
    assert torch.equal(table[ids], rows)
    assert torch.equal(table, expand_vocabulary(rows, ids))
    assert abs(table.mean() - 1) < 0.3 and abs(table.std() - 3) < 0.4
