import pytest
import torch
from inlay.host import salient_masks as module
from inlay.host.salient_masks import saliency_scores, salient_masks


def scores(*specks):
    one = torch.zeros(1, 32, 32)
    for row, column in specks:
        one[0, row, column] = 2.0
    return one


def test_what_erased_the_whole_mask_is_what_the_error_names():
    with pytest.raises(ValueError, match="^The picture has no salient part above the threshold 3. Lower the threshold"):
        salient_masks(scores((5, 5)), 3.0, clean_up=2)
    with pytest.raises(ValueError, match="^The picture has no salient part that a clean-up of 2 pixels leaves."):
        salient_masks(scores((5, 5)), 1.0, clean_up=2)
    pair = torch.cat([torch.full((1, 32, 32), 2.0), scores((5, 5))])
    with pytest.raises(ValueError, match="^Picture 2 of 2 has no salient part that a clean-up"):
        salient_masks(pair, 1.0, clean_up=2)
    assert salient_masks(pair, 1.0)[0].sum() == 32 * 32 + 1


def test_a_text_or_a_vae_of_another_family_is_refused_before_the_model_looks(tiny, encode, monkeypatch):
    picture = torch.rand(1, 64, 64, 3)
    monkeypatch.setattr(module, "self_attention_map", lambda *_: pytest.fail("it looked"))
    monkeypatch.setattr(module, "word_maps", lambda *_, **__: pytest.fail("it looked"))
    other = [[torch.zeros(1, 77, 768), {}]]
    told = "texts are 768 wide and the model takes 128. Connect the CLIP that belongs to the model"
    with pytest.raises(ValueError, match=told):
        saliency_scores(tiny.model, tiny.vae, picture, "self-attention", positive=other)
    with monkeypatch.context() as patch:
        patch.setitem(tiny.model.model.model_config.unet_config, "context_dim", 768)
        with pytest.raises(ValueError, match="texts are 128 wide and the model takes 768"):
            saliency_scores(tiny.model, tiny.vae, picture, "words", clip=tiny.clip, words="star")
    with monkeypatch.context() as patch:
        patch.setattr(tiny.vae, "latent_channels", 16)
        with pytest.raises(ValueError, match="VAE has 16 latent channels and the model 4"):
            saliency_scores(tiny.model, tiny.vae, picture, "self-attention", positive=encode("a star"))
